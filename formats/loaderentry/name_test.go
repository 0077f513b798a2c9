package loaderentry

import (
	"errors"
	"testing"
)

func TestParse(t *testing.T) {
	for file, want := range map[string]Name{
		"system.conf":           {ID: "system", Extension: ".conf"},
		"system+3.conf":         {ID: "system", Extension: ".conf", Counted: true, Left: 3},
		"system+2-1.efi":        {ID: "system", Extension: ".efi", Counted: true, Left: 2, Done: 1},
		"system+0-3.conf":       {ID: "system", Extension: ".conf", Counted: true, Done: 3},
		"6.1.0+deb-9.conf":      {ID: "6.1.0+deb-9", Extension: ".conf"},
		"6.1+deb+1.conf":        {ID: "6.1+deb", Extension: ".conf", Counted: true, Left: 1},
		"a+1+2.conf":            {ID: "a+1", Extension: ".conf", Counted: true, Left: 2},
		"a+.conf":               {ID: "a+", Extension: ".conf"},
		"a+1-.conf":             {ID: "a+1-", Extension: ".conf"},
		"a+-1.conf":             {ID: "a+-1", Extension: ".conf"},
		"a+2147483648.conf":     {ID: "a+2147483648", Extension: ".conf"},
		"a+2147483647-1.conf":   {ID: "a", Extension: ".conf", Counted: true, Left: MaxTries, Done: 1},
		"a+1-1-1.conf":          {ID: "a+1-1-1", Extension: ".conf"},
		"x.efi.conf":            {ID: "x.efi", Extension: ".conf"},
		"with space+1 -1.conf":  {ID: "with space+1 -1", Extension: ".conf"},
		"system+00003-000.conf": {ID: "system", Extension: ".conf", Counted: true, Left: 3},
	} {
		got, err := Parse(file)
		if err != nil || got != want {
			t.Errorf("%s: expected %+v, found %+v, %v", file, want, got, err)
		}
		if again, err := Parse(got.String()); err != nil || again != want {
			t.Errorf("%s: expected the same of %s, found %+v, %v", file, got, again, err)
		}
	}
	for _, bad := range []string{"", "system", ".conf", "+1.conf", "system.conf.tmp", "a/b.conf", "a\x00.efi", "A.CONF"} {
		if got, err := Parse(bad); !errors.Is(err, ErrName) || got != (Name{}) {
			t.Errorf("%q: expected %v, found %v, %+v", bad, ErrName, err, got)
		}
	}
}

// The series of the specification.
func TestLife(t *testing.T) {
	n, err := Parse("foobar+3.efi")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"foobar+2-1.efi", "foobar+1-2.efi", "foobar+0-3.efi", "foobar+0-3.efi"} {
		if n = n.Booted(); n.String() != want {
			t.Errorf("expected %s, found %s", want, n)
		}
	}
	if !n.Bad() || n.Good().Bad() || n.Good().String() != "foobar.efi" || n.Good().Booted() != n.Good() {
		t.Errorf("expected %s to be bad, and good once it is marked", n)
	}
	if n = n.WithTries(4); n.String() != "foobar+4.efi" || n.Bad() || !n.WithTries(0).Bad() {
		t.Errorf("expected foobar+4.efi, found %s", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("system+2-1.conf")
	f.Add("a+1+2.efi")
	f.Fuzz(func(t *testing.T, file string) {
		n, err := Parse(file)
		if err != nil {
			return
		}
		if again, err := Parse(n.String()); err != nil || again != n {
			t.Fatalf("expected %+v, found %+v, %v", n, again, err)
		}
		if n.Counted {
			if b, err := Parse(n.Booted().String()); err != nil || b != n.Booted() || b.ID != n.ID {
				t.Fatalf("expected %+v, found %+v, %v", n.Booted(), b, err)
			}
		}
	})
}
