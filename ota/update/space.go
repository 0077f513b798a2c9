package update

import "cowbird/formats/snapshotpb"

// Space is what an update takes, and what another one could, in bytes.
type Space struct {
	Used  int64 // by the COWs that there are
	Super int64 // for COWs and larger partitions in super, once this update is over
	Files int64 // for COWs in files, likewise
}

// Space looks how much room there is.
func (m *Manager) Space() (s Space, err error) {
	all, err := m.Snapshots()
	if err != nil {
		return s, err
	}
	s.Used = cowBytes(all)
	err = m.locked(false, func() error {
		from, to, err := m.suffixes()
		if err != nil {
			return err
		}
		running, err := m.metadata()
		if err != nil {
			return err
		}
		p := &planner{from: from, to: to}
		if err := p.begin(running); err != nil {
			return err
		}
		for _, r := range p.unused {
			s.Super += int64(r.Sectors() * sectorSize)
		}
		if m.Images != nil {
			s.Files, err = m.Images.Room()
		}
		return err
	})
	return s, err
}

func cowBytes(all []*snapshotpb.SnapshotStatus) (n int64) {
	for _, s := range all {
		n += int64(s.CowPartitionSize + s.CowFileSize)
	}
	return n
}
