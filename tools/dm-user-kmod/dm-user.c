// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-user: a device-mapper target whose requests are answered by a process.
 *
 * Each target has a character device, /dev/dm-user/<name>. Whoever opens it
 * has a channel: a stream of requests to read, and of responses to write.
 *
 *   map() ──► queue ──► reading ──► unanswered ──► answering ──► bio_endio()
 *            (target)   (channel)    (channel)     (channel)
 *
 * A message lives in device-mapper's per-bio data. So it is allocated with the
 * bio's clone, from a mempool, costs nothing while nothing is asked, and is gone
 * once the bio has ended.
 *
 * One spinlock a target guards every list and state, and is never held while
 * anything sleeps. Bytes are copied outside of it: to be copied, a message is
 * taken off its list, and belongs to its channel's reader (or writer) until it
 * is put on the next. The two mutexes of a channel only make callers on one
 * file take turns.
 */

#include <linux/bio.h>
#include <linux/device-mapper.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kref.h>
#include <linux/limits.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#define DM_MSG_PREFIX "user"

static unsigned int dm_user_daemon_timeout_msec = 4000;
module_param(dm_user_daemon_timeout_msec, uint, 0644);
MODULE_PARM_DESC(dm_user_daemon_timeout_msec,
		 "how long requests wait for the first daemon of a new target");

/* What goes over a channel, in the byte order of the machine. */
struct header {
	u64 seq;
	u64 type; /* an operation one way, a result the other */
	u64 flags;
	u64 sector;
	u64 len; /* of the payload that follows: of a write, or of what was read */
};
static_assert(sizeof(struct header) == 40);

enum {
	TYPE_READ = 0,
	TYPE_WRITE = 1,
	TYPE_FLUSH = 2,
	TYPE_DISCARD = 3,
	TYPE_SECURE_ERASE = 4,
	TYPE_WRITE_ZEROES = 6,
};

enum { RESULT_SUCCESS = 0 }; /* any other result fails the request */

struct message {
	struct list_head link;
	u64 seq;
	struct bvec_iter todo; /* payload that is still to be copied */
};

struct target {
	struct kref refs; /* device-mapper's, and one a channel */
	struct miscdevice misc;
	const char *table; /* the arguments, as they were given */
	const char *name;  /* the last of them */
	struct list_head names;

	spinlock_t lock; /* guards what follows, and the channels' messages */
	struct list_head queue;
	struct list_head channels;
	u64 next_seq;
	bool orphaned; /* had a daemon, and lost it */
	bool dead;     /* device-mapper has let go of it */

	wait_queue_head_t wait; /* for queue or dead */
	struct delayed_work timeout;
};

struct channel {
	struct target *target;
	struct list_head link;

	struct mutex reader;
	struct message *reading;
	size_t header_read; /* how much of its header has been read */

	struct list_head unanswered;

	struct mutex writer;
	struct message *answering;
	struct header response;
	size_t header_written;
	bool broken; /* has answered what it was not asked */
};

/* The names in use, so that a second target of a name fails without a noise. */
static LIST_HEAD(target_names);
static DEFINE_MUTEX(target_names_lock);

static struct bio *bio_of(struct message *m)
{
	return dm_bio_from_per_bio_data(m, sizeof(*m));
}

static void finish(struct message *m, blk_status_t status)
{
	struct bio *bio = bio_of(m);

	bio->bi_status = status;
	bio_endio(bio);
}

static void fail_all(struct list_head *messages)
{
	struct message *m, *next;

	list_for_each_entry_safe(m, next, messages, link)
		finish(m, BLK_STS_IOERR);
}

static void target_free(struct kref *refs)
{
	struct target *t = container_of(refs, struct target, refs);

	kfree(t->misc.name);
	kfree(t->table);
	kfree(t);
}

/*
 * Requests
 */

static int type_of(struct bio *bio)
{
	switch (bio_op(bio)) {
	case REQ_OP_READ:
		return TYPE_READ;
	case REQ_OP_WRITE: /* an empty one with the preflush flag is a flush */
		return TYPE_WRITE;
	case REQ_OP_FLUSH:
		return TYPE_FLUSH;
	case REQ_OP_DISCARD:
		return TYPE_DISCARD;
	case REQ_OP_SECURE_ERASE:
		return TYPE_SECURE_ERASE;
	case REQ_OP_WRITE_ZEROES:
		return TYPE_WRITE_ZEROES;
	default:
		return -EOPNOTSUPP;
	}
}

/* The bits of a header's flags, from 0x1 up. Other flags of a bio are hints
 * within this kernel, and of no use to a daemon. */
static const blk_opf_t flag_bits[] = {
	REQ_FAILFAST_DEV, REQ_FAILFAST_TRANSPORT, REQ_FAILFAST_DRIVER,
	REQ_SYNC, REQ_META, REQ_PRIO, REQ_NOMERGE, REQ_IDLE, REQ_INTEGRITY,
	REQ_FUA, REQ_PREFLUSH, REQ_RAHEAD, REQ_BACKGROUND, REQ_NOWAIT,
	0 /* 0x4000: cgroup punt, never seen by a target */, REQ_NOUNMAP,
};

static u64 flags_of(struct bio *bio)
{
	u64 flags = 0;
	int i;

	for (i = 0; i < ARRAY_SIZE(flag_bits); i++)
		if (bio->bi_opf & flag_bits[i])
			flags |= 1ULL << i;
	return flags;
}

static struct header request_of(struct message *m)
{
	struct bio *bio = bio_of(m);

	return (struct header){
		.seq = m->seq,
		.type = type_of(bio),
		.flags = flags_of(bio),
		.sector = bio->bi_iter.bi_sector,
		.len = bio->bi_iter.bi_size,
	};
}

static int user_map(struct dm_target *ti, struct bio *bio)
{
	struct target *t = ti->private;
	struct message *m = dm_per_bio_data(bio, sizeof(*m));
	bool taken = false;

	if (type_of(bio) < 0)
		return DM_MAPIO_KILL;

	m->todo = bio->bi_iter;
	if (op_is_write(bio_op(bio)) != (bio_op(bio) == REQ_OP_WRITE))
		m->todo.bi_size = 0; /* a discard has a length but no payload */

	spin_lock(&t->lock);
	if (!t->orphaned && !t->dead) {
		taken = true;
		m->seq = t->next_seq++;
		list_add_tail(&m->link, &t->queue);
		if (list_empty(&t->channels)) /* runs already, or is set */
			schedule_delayed_work(&t->timeout,
				msecs_to_jiffies(READ_ONCE(dm_user_daemon_timeout_msec)));
	}
	spin_unlock(&t->lock);

	if (!taken)
		return DM_MAPIO_KILL;
	wake_up_interruptible(&t->wait);
	return DM_MAPIO_SUBMITTED;
}

/* No daemon has come. */
static void user_timeout(struct work_struct *work)
{
	struct target *t = container_of(to_delayed_work(work), struct target, timeout);
	LIST_HEAD(failed);

	spin_lock(&t->lock);
	if (list_empty(&t->channels))
		list_splice_init(&t->queue, &failed);
	spin_unlock(&t->lock);

	if (list_empty(&failed))
		return;
	DMERR_LIMIT("no user-space daemon for dm-user/%s target", t->name);
	fail_all(&failed);
}

/*
 * Reading
 */

/* take() gives the channel's reader a request, if there is one. */
static bool take(struct channel *c)
{
	struct target *t = c->target;

	spin_lock(&t->lock);
	if (!list_empty(&t->queue)) {
		c->reading = list_first_entry(&t->queue, struct message, link);
		list_del(&c->reading->link);
		c->header_read = 0;
	}
	spin_unlock(&t->lock);
	return c->reading;
}

static int await_request(struct channel *c, bool nonblock)
{
	struct target *t = c->target;
	int err;

	if (nonblock) {
		if (!take(c) && !READ_ONCE(t->dead))
			return -EAGAIN;
	} else {
		/* Exclusive: one request wakes one of the channels. */
		err = wait_event_interruptible_exclusive(t->wait, take(c) || READ_ONCE(t->dead));
		if (err)
			return err;
	}
	return c->reading ? 0 : -ENOTBLK;
}

/* The request has been read: from now on it can be answered. */
static void reading_done(struct channel *c)
{
	spin_lock(&c->target->lock);
	list_add_tail(&c->reading->link, &c->unanswered);
	c->reading = NULL;
	spin_unlock(&c->target->lock);
}

/* copy_payload() moves what is left of a payload, as far as the caller's memory
 * goes; fill says that the bio's own is to be filled. */
static size_t copy_payload(struct message *m, struct iov_iter *user, bool fill)
{
	struct bio *bio = bio_of(m);
	size_t done = 0;

	while (m->todo.bi_size && iov_iter_count(user)) {
		struct bio_vec v = bio_iter_iovec(bio, m->todo);
		size_t n;

		if (fill) {
			n = copy_page_from_iter(v.bv_page, v.bv_offset, v.bv_len, user);
			flush_dcache_page(v.bv_page);
		} else {
			n = copy_page_to_iter(v.bv_page, v.bv_offset, v.bv_len, user);
		}
		bio_advance_iter(bio, &m->todo, n);
		done += n;
		if (n < v.bv_len)
			break;
		cond_resched();
	}
	return done;
}

static size_t read_header(struct channel *c, struct iov_iter *to)
{
	struct header h = request_of(c->reading);
	size_t n;

	n = copy_to_iter((char *)&h + c->header_read, sizeof(h) - c->header_read, to);
	c->header_read += n;
	return n;
}

/* channel_lock() has callers on one file take turns. */
static int channel_lock(struct mutex *lock, bool nonblock)
{
	if (nonblock)
		return mutex_trylock(lock) ? 0 : -EAGAIN;
	return mutex_lock_interruptible(lock) ? -ERESTARTSYS : 0;
}

static bool nonblocking(struct kiocb *iocb)
{
	return (iocb->ki_filp->f_flags & O_NONBLOCK) || (iocb->ki_flags & IOCB_NOWAIT);
}

/* One read gives bytes of a header or bytes of a payload, never of both. */
static ssize_t user_read(struct kiocb *iocb, struct iov_iter *to)
{
	struct channel *c = iocb->ki_filp->private_data;
	bool nonblock = nonblocking(iocb);
	size_t wanted = iov_iter_count(to);
	ssize_t n;
	bool payload;

	n = channel_lock(&c->reader, nonblock);
	if (n)
		return n;
	if (!c->reading)
		n = await_request(c, nonblock);
	if (n)
		goto out;

	payload = bio_op(bio_of(c->reading)) == REQ_OP_WRITE;
	if (c->header_read < sizeof(struct header))
		n = read_header(c, to);
	else
		n = copy_payload(c->reading, to, false);
	if (c->header_read == sizeof(struct header) && (!payload || !c->reading->todo.bi_size))
		reading_done(c);
	if (!n && wanted)
		n = -EFAULT;
out:
	mutex_unlock(&c->reader);
	return n;
}

static __poll_t user_poll(struct file *file, poll_table *wait)
{
	struct channel *c = file->private_data;
	struct target *t = c->target;
	__poll_t events = EPOLLOUT | EPOLLWRNORM; /* a write never waits for another */

	poll_wait(file, &t->wait, wait);
	spin_lock(&t->lock);
	if (c->reading || !list_empty(&t->queue))
		events |= EPOLLIN | EPOLLRDNORM;
	if (t->dead)
		events |= EPOLLIN | EPOLLRDNORM | EPOLLHUP | EPOLLERR;
	spin_unlock(&t->lock);
	return events;
}

/*
 * Writing
 */

/* answered() takes the message that the response is for off the channel's list. */
static struct message *answered(struct channel *c)
{
	struct message *m, *found = NULL;

	spin_lock(&c->target->lock);
	list_for_each_entry(m, &c->unanswered, link) {
		if (m->seq == c->response.seq) {
			list_del(&m->link);
			found = m;
			break;
		}
	}
	spin_unlock(&c->target->lock);
	return found;
}

/* response_begun() acts on a complete header. What has no payload ends here. */
static void response_begun(struct channel *c)
{
	struct message *m = answered(c);

	c->header_written = 0;
	if (!m) {
		c->broken = true;
		pr_warn_ratelimited("dm-user: invalid message seq %llu in a response on dm-user/%s\n",
				    c->response.seq, c->target->name);
	} else if (c->response.type != RESULT_SUCCESS) {
		finish(m, BLK_STS_IOERR);
	} else if (bio_op(bio_of(m)) != REQ_OP_READ || !m->todo.bi_size) {
		finish(m, BLK_STS_OK);
	} else {
		c->answering = m;
	}
}

static size_t write_header(struct channel *c, struct iov_iter *from)
{
	size_t n = copy_from_iter((char *)&c->response + c->header_written,
				  sizeof(c->response) - c->header_written, from);

	c->header_written += n;
	if (c->header_written == sizeof(c->response))
		response_begun(c);
	return n;
}

static size_t write_payload(struct channel *c, struct iov_iter *from)
{
	struct message *m = c->answering;
	size_t n = copy_payload(m, from, true);

	if (!m->todo.bi_size) {
		c->answering = NULL;
		finish(m, BLK_STS_OK);
	}
	return n;
}

/* One write gives bytes of one response: of its header, its payload, or both. */
static ssize_t user_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct channel *c = iocb->ki_filp->private_data;
	size_t wanted = iov_iter_count(from);
	ssize_t n;

	n = channel_lock(&c->writer, nonblocking(iocb));
	if (n)
		return n;
	if (c->broken) {
		n = -EINVAL;
	} else if (READ_ONCE(c->target->dead)) {
		n = -ENOTBLK;
	} else if (wanted) {
		if (!c->answering)
			n = write_header(c, from);
		if (c->answering)
			n += write_payload(c, from);
		if (!n)
			n = -EFAULT;
	}
	mutex_unlock(&c->writer);
	return n;
}

/*
 * Channels
 */

static int user_open(struct inode *inode, struct file *file)
{
	/* The misc device is registered, so the target is there. */
	struct target *t = container_of(file->private_data, struct target, misc);
	struct channel *c = kzalloc(sizeof(*c), GFP_KERNEL);

	if (!c)
		return -ENOMEM;
	c->target = t;
	INIT_LIST_HEAD(&c->unanswered);
	mutex_init(&c->reader);
	mutex_init(&c->writer);
	kref_get(&t->refs);

	spin_lock(&t->lock);
	list_add(&c->link, &t->channels);
	t->orphaned = false;
	spin_unlock(&t->lock);

	file->private_data = c;
	return stream_open(inode, file);
}

/* What the channel holds fails; if it was the last one, so does all that waits. */
static int user_release(struct inode *inode, struct file *file)
{
	struct channel *c = file->private_data;
	struct target *t = c->target;
	LIST_HEAD(failed);

	spin_lock(&t->lock);
	list_del(&c->link);
	list_splice_init(&c->unanswered, &failed);
	if (c->reading)
		list_add(&c->reading->link, &failed);
	if (c->answering)
		list_add(&c->answering->link, &failed);
	if (list_empty(&t->channels)) {
		t->orphaned = true;
		list_splice_init(&t->queue, &failed);
	}
	spin_unlock(&t->lock);

	fail_all(&failed);
	kref_put(&t->refs, target_free);
	kfree(c);
	return 0;
}

static const struct file_operations user_fops = {
	.owner = THIS_MODULE,
	.open = user_open,
	.release = user_release,
	.read_iter = user_read,
	.write_iter = user_write,
	.poll = user_poll,
};

/*
 * Targets
 */

static int claim_name(struct target *t)
{
	struct target *other;
	int err = 0;

	mutex_lock(&target_names_lock);
	list_for_each_entry(other, &target_names, names)
		if (!strcmp(other->name, t->name))
			err = -ENOMEM; /* odd, but what clients know */
	if (!err)
		list_add(&t->names, &target_names);
	mutex_unlock(&target_names_lock);
	return err;
}

static void release_name(struct target *t)
{
	mutex_lock(&target_names_lock);
	list_del(&t->names);
	mutex_unlock(&target_names_lock);
}

/* The name becomes a path below /dev/dm-user, where the kernel makes '!' a slash,
 * and the last word of a table, where spaces and backslashes are special. */
static bool good_name(const char *s)
{
	return *s && strlen(s) <= NAME_MAX && !strpbrk(s, "/!\\ \t\n\v\f\r") &&
	       strcmp(s, ".") && strcmp(s, "..");
}

static struct target *target_alloc(char **argv)
{
	struct target *t = kzalloc(sizeof(*t), GFP_KERNEL);

	if (!t)
		return NULL;
	kref_init(&t->refs);
	spin_lock_init(&t->lock);
	INIT_LIST_HEAD(&t->queue);
	INIT_LIST_HEAD(&t->channels);
	init_waitqueue_head(&t->wait);
	INIT_DELAYED_WORK(&t->timeout, user_timeout);
	t->misc.minor = MISC_DYNAMIC_MINOR;
	t->misc.fops = &user_fops;
	t->misc.mode = 0600;
	t->misc.name = kasprintf(GFP_KERNEL, "dm-user/%s", argv[2]);
	t->table = kasprintf(GFP_KERNEL, "%s %s %s", argv[0], argv[1], argv[2]);
	if (!t->misc.name || !t->table) {
		kref_put(&t->refs, target_free);
		return NULL;
	}
	t->name = strrchr(t->table, ' ') + 1;
	return t;
}

/* Arguments: <start> <sectors> <name>, of which only the name counts. */
static int user_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct target *t;
	int err;

	if (argc != 3) {
		ti->error = "expected three arguments: <start> <sectors> <name>";
		return -EINVAL;
	}
	if (!good_name(argv[2])) {
		ti->error = "the name is not that of a file";
		return -EINVAL;
	}
	t = target_alloc(argv);
	if (!t) {
		ti->error = "out of memory";
		return -ENOMEM;
	}
	err = claim_name(t);
	if (err) {
		ti->error = "the name is in use";
		goto put;
	}
	err = misc_register(&t->misc);
	if (err) {
		ti->error = "cannot make the device node";
		goto release;
	}
	ti->private = t;
	ti->num_flush_bios = 1;
	ti->flush_supported = true;
	ti->per_io_data_size = sizeof(struct message);
	return 0;

release:
	release_name(t);
put:
	kref_put(&t->refs, target_free);
	return err;
}

/* Channels may outlive the target: all that they get from now on is ENOTBLK. */
static void user_dtr(struct dm_target *ti)
{
	struct target *t = ti->private;
	LIST_HEAD(failed);

	misc_deregister(&t->misc);
	release_name(t);

	spin_lock(&t->lock);
	t->dead = true;
	list_splice_init(&t->queue, &failed);
	spin_unlock(&t->lock);

	WARN_ON_ONCE(!list_empty(&failed)); /* device-mapper waits for them */
	fail_all(&failed);
	cancel_delayed_work_sync(&t->timeout);
	wake_up_all(&t->wait);
	kref_put(&t->refs, target_free);
}

static unsigned int length(struct list_head *list)
{
	struct list_head *l;
	unsigned int n = 0;

	list_for_each(l, list)
		n++;
	return n;
}

/* The table line gives the arguments back; the status line has the name, how
 * many channels are open, and how many requests no channel has taken yet. */
static void user_status(struct dm_target *ti, status_type_t type,
			unsigned int status_flags, char *result, unsigned int maxlen)
{
	struct target *t = ti->private;
	unsigned int sz = 0, channels, queued;

	switch (type) {
	case STATUSTYPE_INFO:
		spin_lock(&t->lock);
		channels = length(&t->channels);
		queued = length(&t->queue);
		spin_unlock(&t->lock);
		DMEMIT("%s %u %u", t->name, channels, queued);
		break;
	case STATUSTYPE_TABLE:
		DMEMIT("%s", t->table);
		break;
	case STATUSTYPE_IMA:
		DMEMIT_TARGET_NAME_VERSION(ti->type);
		DMEMIT(",name=%s;", t->name);
		break;
	}
}

static struct target_type user_target = {
	.name = "user",
	.version = { 1, 0, 0 },
	.module = THIS_MODULE,
	.ctr = user_ctr,
	.dtr = user_dtr,
	.map = user_map,
	.status = user_status,
};

static int __init dm_user_init(void)
{
	return dm_register_target(&user_target);
}

static void __exit dm_user_exit(void)
{
	dm_unregister_target(&user_target);
}

module_init(dm_user_init);
module_exit(dm_user_exit);
MODULE_DESCRIPTION("device-mapper target whose requests are answered by a process");
MODULE_ALIAS("dm-user");
MODULE_LICENSE("GPL");
