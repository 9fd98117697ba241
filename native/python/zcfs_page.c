/* Borrowed pages as Python objects: the module zcfs._native._page, the second of the library
 * that has zcfs._native._lib, for both use the same pools.
 *
 * File is a file of a pool, and makes Borrows: a page, or a run of pages. zcfs/pool/page.py has the
 * classes that are made of it; nothing else makes any. Each has a Frames, which is the borrow: it
 * gives the bytes by the buffer protocol, and whatever looks at them refers to it. The end of the
 * block merely lets go of the Frames; the borrow ends with its last reference. If that is not
 * the Borrow's, the pages count as leaked until it goes. (The references are counted, not the
 * buffers that were given out: numpy's arrays keep the object that gave them a buffer, and give the
 * buffer back at once.)
 *
 * Threads: all of this runs under the GIL. It is let go of wherever the disk may be waited for, and
 * kept for a page that is there: to let go of it costs more than such a borrow. The pool never waits
 * for the GIL.
 *
 * Limited API, of Python 3.11 on.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <stdbool.h>

#include "zcfs.h"

#define MOST_PAGES 256 /* of one call to zcfs_run_borrow */

struct file {
	PyObject_HEAD
	PyObject *owner; /* keeps `file` and `pool` */
	struct zcfs_file *file;
	struct zcfs_pool *pool;
	Py_ssize_t page_size;
};

struct frames {
	PyObject_HEAD
	struct zcfs_pool *pool; /* which the borrow keeps */
	unsigned char *data;	/* NULL: no longer borrowed */
	Py_ssize_t size;
	uint32_t page_size, pages;
	bool exclusive, leaked;
};

struct borrow {
	PyObject_HEAD
	struct file *file;
	struct frames *frames; /* NULL: it has ended */
	unsigned long long number;
	Py_ssize_t size;
	unsigned int pages;
};

static PyTypeObject *frames_type, *borrow_base;

/* What is made: a page, a run of them, and one that is exclusively borrowed. */
static PyTypeObject *page_type, *run_type, *mut_type;

static PyObject *refuse_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	(void)type, (void)args, (void)keywords;
	PyErr_SetString(PyExc_TypeError, "borrowed pages are made by a PoolFile");
	return NULL;
}

/* Frames ------------------------------------------------------------------------------------------ */

static void put(struct zcfs_pool *pool, uint32_t page_size, bool exclusive, uint32_t pages,
		unsigned char *data)
{
	if (exclusive)
		zcfs_page_abandon(pool, data);
	else
		zcfs_run_put(pool, page_size, pages, data);
}

static void frames_put(struct frames *f)
{
	if (f->leaked)
		zcfs_pool_leak(f->pool, -(int64_t)f->pages);
	if (!zcfs_pool_closed(f->pool)) {
		put(f->pool, f->page_size, f->exclusive, f->pages, f->data);
		return;
	}
	/* the last of a closed pool takes the arena with it, which takes long */
	Py_BEGIN_ALLOW_THREADS
	put(f->pool, f->page_size, f->exclusive, f->pages, f->data);
	Py_END_ALLOW_THREADS
}

static void frames_dealloc(PyObject *self)
{
	struct frames *f = (struct frames *)self;
	PyTypeObject *type = Py_TYPE(self);

	if (f->data)
		frames_put(f);
	PyObject_Free(self);
	Py_DECREF(type);
}

/* Whoever borrowed them lets go: counted as leaked, if somebody looks at them still. */
static void frames_let_go(struct frames *f)
{
	if (Py_REFCNT((PyObject *)f) > 1 && !f->leaked) {
		f->leaked = true;
		zcfs_pool_leak(f->pool, f->pages);
	}
	Py_DECREF((PyObject *)f);
}

static int frames_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
	struct frames *f = (struct frames *)self;

	return PyBuffer_FillInfo(view, self, f->data, f->size, !f->exclusive, flags);
}

static PyType_Slot frames_slots[] = {
	{Py_tp_new, refuse_new},
	{Py_tp_dealloc, frames_dealloc},
	{Py_bf_getbuffer, frames_getbuffer},
	{0},
};

static PyType_Spec frames_spec = {
	.name = "zcfs._native._page.Frames",
	.basicsize = sizeof(struct frames),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = frames_slots,
};

/* Borrow ------------------------------------------------------------------------------------------ */

/* NULL: the borrow has ended, for there was no memory. */
static struct frames *frames_new(struct file *f, const struct zcfs_run *run, bool exclusive)
{
	struct frames *n = PyObject_New(struct frames, frames_type);
	uint32_t page_size = (uint32_t)f->page_size;

	if (!n) {
		put(f->pool, page_size, exclusive, run->pages, run->data);
		return NULL;
	}
	n->pool = f->pool;
	n->data = run->data;
	n->size = (Py_ssize_t)run->bytes;
	n->page_size = page_size;
	n->pages = run->pages;
	n->exclusive = exclusive;
	n->leaked = false;
	return n;
}

/* Of pages that have just been borrowed; without memory they are no longer. */
static PyObject *borrow_new(PyTypeObject *type, struct file *f, const struct zcfs_run *run)
{
	struct frames *frames = frames_new(f, run, type == mut_type);

	if (!frames)
		return NULL;
	struct borrow *b = (struct borrow *)PyType_GenericAlloc(type, 0);
	if (!b) {
		Py_DECREF((PyObject *)frames);
		return NULL;
	}
	Py_INCREF((PyObject *)f);
	b->file = f;
	b->frames = frames;
	b->number = run->first;
	b->size = (Py_ssize_t)run->bytes;
	b->pages = run->pages;
	return (PyObject *)b;
}

static PyObject *borrow_reduce(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	PyErr_SetString(PyExc_TypeError, "a borrowed page cannot be copied or pickled");
	return NULL;
}

static void borrow_dealloc(PyObject *self)
{
	struct borrow *b = (struct borrow *)self;
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	Py_XDECREF((PyObject *)b->frames);
	Py_XDECREF((PyObject *)b->file);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

/* Without a clear: the others of a cycle have one. */
static int borrow_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT((PyObject *)((struct borrow *)self)->file);
	return 0;
}

/* NULL, with the exception that the Python half makes: it has ended. */
static struct frames *borrow_live(PyObject *self)
{
	struct frames *frames = ((struct borrow *)self)->frames;

	if (frames)
		return frames;
	PyObject *error = PyObject_CallMethod(self, "_ended_error", NULL);
	if (error)
		PyErr_SetObject((PyObject *)Py_TYPE(error), error);
	Py_XDECREF(error);
	return NULL;
}

static PyObject *borrow_data(PyObject *self, void *unused)
{
	struct frames *frames = borrow_live(self);

	(void)unused;
	return frames ? PyMemoryView_FromObject((PyObject *)frames) : NULL;
}

static PyObject *borrow_version(PyObject *self, void *unused)
{
	struct frames *f = borrow_live(self);

	(void)unused;
	return f ? PyLong_FromUnsignedLongLong(zcfs_page_version(f->pool, f->data)) : NULL;
}

static PyObject *borrow_address(PyObject *self, void *unused)
{
	struct frames *f = borrow_live(self);

	(void)unused;
	return f ? PyLong_FromVoidPtr(f->data) : NULL;
}

static PyObject *borrow_ended(PyObject *self, void *unused)
{
	(void)unused;
	return PyBool_FromLong(!((struct borrow *)self)->frames);
}

static PyObject *borrow_enter(PyObject *self, PyObject *unused)
{
	(void)unused;
	Py_INCREF(self);
	return self;
}

/* Its frames, which are the caller's then; NULL: it has ended. */
static struct frames *borrow_take(PyObject *self)
{
	struct borrow *b = (struct borrow *)self;
	struct frames *frames = b->frames;

	b->frames = NULL;
	return frames;
}

static PyObject *borrow_release(PyObject *self, PyObject *unused)
{
	struct frames *frames = borrow_take(self);

	(void)unused;
	if (frames)
		frames_let_go(frames);
	Py_RETURN_NONE;
}

static PyObject *borrow_exit(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	(void)args, (void)count;
	return borrow_release(self, NULL);
}

/* How an exclusive borrow ends whose page somebody still looks at: they keep the frame, and it is
 * the file's no longer. */
static int part_with(struct zcfs_file *file, unsigned char *data, bool write, bool durable)
{
	return write ? zcfs_page_write_back(file, data, durable) : zcfs_page_detach(file, data);
}

static int finish(struct zcfs_file *file, struct frames *f, bool write, bool durable)
{
	bool watched = Py_REFCNT((PyObject *)f) > 1;
	int err = 0;

	Py_BEGIN_ALLOW_THREADS
	if (watched)
		err = part_with(file, f->data, write, durable);
	else if (write)
		err = zcfs_page_commit(file, f->data, durable);
	Py_END_ALLOW_THREADS
	if (!watched && write && !err)
		f->data = NULL;
	return err;
}

static PyObject *borrow_finish(PyObject *self, PyObject *args)
{
	int write, durable, err = 0;

	if (!PyArg_ParseTuple(args, "pp", &write, &durable))
		return NULL;
	struct frames *frames = borrow_take(self);
	if (frames) {
		err = finish(((struct borrow *)self)->file->file, frames, write, durable);
		frames_let_go(frames);
	}
	return PyLong_FromLong(-err);
}

static PyMethodDef borrow_methods[] = {
	{"__enter__", borrow_enter, METH_NOARGS, NULL},
	{"__exit__", (PyCFunction)(void (*)(void))borrow_exit, METH_FASTCALL, NULL},
	{"__reduce__", borrow_reduce, METH_NOARGS, NULL},
	{"release", borrow_release, METH_NOARGS,
	 PyDoc_STR("End the borrow, as the end of its block does. Idempotent.")},
	{"_finish", borrow_finish, METH_VARARGS,
	 PyDoc_STR("End an exclusive borrow: (write, durable). 0 or the errno of writing it.")},
	{0},
};

static PyGetSetDef borrow_getset[] = {
	{"data", borrow_data, NULL,
	 PyDoc_STR("The bytes, in the frame itself, up to the end of the file."), NULL},
	{"version", borrow_version, NULL,
	 PyDoc_STR("Grows with each change: the same version has the same bytes."), NULL},
	{"address", borrow_address, NULL,
	 PyDoc_STR("Where the frame is in this process's memory."), NULL},
	{"_ended", borrow_ended, NULL, NULL, NULL},
	{0},
};

static PyMemberDef borrow_members[] = {
	{"file", T_OBJECT_EX, offsetof(struct borrow, file), READONLY, NULL},
	{"number", T_ULONGLONG, offsetof(struct borrow, number), READONLY, NULL},
	{"size", T_PYSSIZET, offsetof(struct borrow, size), READONLY, NULL},
	{"_pages", T_UINT, offsetof(struct borrow, pages), READONLY, NULL},
	{0},
};

static PyType_Slot borrow_slots[] = {
	{Py_tp_new, refuse_new},
	{Py_tp_dealloc, borrow_dealloc},
	{Py_tp_traverse, borrow_traverse},
	{Py_tp_methods, borrow_methods},
	{Py_tp_getset, borrow_getset},
	{Py_tp_members, borrow_members},
	{0},
};

static PyType_Spec borrow_spec = {
	.name = "zcfs._native._page.Borrow",
	.basicsize = sizeof(struct borrow),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = borrow_slots,
};

/* File -------------------------------------------------------------------------------------------- */

static int file_init(PyObject *self, PyObject *args, PyObject *keywords)
{
	struct file *f = (struct file *)self;
	PyObject *owner;
	unsigned long long file, pool;
	Py_ssize_t page_size;

	(void)keywords;
	if (!PyArg_ParseTuple(args, "OKKn", &owner, &file, &pool, &page_size))
		return -1;
	if (f->file || !file || !pool) {
		PyErr_SetString(PyExc_ValueError, "one file, once");
		return -1;
	}
	Py_INCREF(owner);
	f->owner = owner;
	f->file = (struct zcfs_file *)(uintptr_t)file;
	f->pool = (struct zcfs_pool *)(uintptr_t)pool;
	f->page_size = page_size;
	return 0;
}

/* The owner is no container: it is in no cycle, and is needed to the end. */
static int file_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	return 0;
}

static void file_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	Py_XDECREF(((struct file *)self)->owner);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

/* Raises what the Python half makes of an errno. NULL. */
static PyObject *file_error(PyObject *self, int err, unsigned long long number)
{
	PyObject *error = PyObject_CallMethod(self, "_error", "iK", err, number);

	if (error)
		PyErr_SetObject((PyObject *)Py_TYPE(error), error);
	Py_XDECREF(error);
	return NULL;
}

/* A page number; false, with an exception: it is none. IndexError where no file is that long. */
static bool page_number(PyObject *arg, unsigned long long *number)
{
	PyObject *index = PyNumber_Index(arg);

	if (!index)
		return false;
	*number = PyLong_AsUnsignedLongLong(index);
	Py_DECREF(index);
	if (*number != (unsigned long long)-1 || !PyErr_Occurred())
		return true;
	if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
		PyErr_Clear();
		PyErr_Format(PyExc_IndexError, "no page %S: numbers are from 0 to 2**64 - 1", arg);
	}
	return false;
}

static bool file_ready(PyObject *self)
{
	if (((struct file *)self)->file)
		return true;
	PyErr_SetString(PyExc_ValueError, "not open");
	return false;
}

static PyObject *file_page(PyObject *self, PyObject *arg)
{
	struct file *f = (struct file *)self;
	unsigned long long number;
	struct zcfs_run run;
	int err;

	if (!file_ready(self) || !page_number(arg, &number))
		return NULL;
	run = (struct zcfs_run){.first = number, .pages = 1, .bytes = (uint64_t)f->page_size};
	run.data = zcfs_page_borrow_cached(f->file, number);
	if (run.data)
		return borrow_new(page_type, f, &run);
	Py_BEGIN_ALLOW_THREADS
	run.data = zcfs_page_borrow(f->file, number);
	err = errno;
	Py_END_ALLOW_THREADS
	if (!run.data)
		return file_error(self, err, number);
	run.bytes = zcfs_page_valid(f->pool, run.data);
	return borrow_new(page_type, f, &run);
}

static PyObject *file_borrow_mut(PyObject *self, PyObject *arg)
{
	struct file *f = (struct file *)self;
	unsigned long long number;
	struct zcfs_run run;
	int err;

	if (!file_ready(self) || !page_number(arg, &number))
		return NULL;
	run = (struct zcfs_run){.first = number, .pages = 1};
	Py_BEGIN_ALLOW_THREADS
	run.data = zcfs_page_borrow_mut(f->file, number);
	err = errno;
	Py_END_ALLOW_THREADS
	if (!run.data)
		return file_error(self, err, number);
	run.bytes = zcfs_page_valid(f->pool, run.data);
	return borrow_new(mut_type, f, &run);
}

/* All of the runs become the list's, or none stays borrowed. */
static PyObject *list_of(struct file *f, PyTypeObject *type, const struct zcfs_run *runs, int count)
{
	PyObject *list = PyList_New(count);

	for (int i = 0; i < count; i++) {
		if (!list) {
			put(f->pool, (uint32_t)f->page_size, false, runs[i].pages, runs[i].data);
			continue;
		}
		PyObject *b = borrow_new(type, f, &runs[i]);
		if (b)
			PyList_SetItem(list, i, b);
		else
			Py_CLEAR(list);
	}
	return list;
}

static bool numbers_of(PyObject *list, uint64_t *numbers, Py_ssize_t *count)
{
	*count = PyList_Size(list);
	if (*count > MOST_PAGES) {
		PyErr_SetString(PyExc_ValueError, "too many pages");
		return false;
	}
	for (Py_ssize_t i = 0; i < *count; i++) {
		unsigned long long number;

		if (!page_number(PyList_GetItem(list, i), &number))
			return false;
		numbers[i] = number;
	}
	return true;
}

static PyObject *file_borrow_many(PyObject *self, PyObject *args)
{
	struct file *f = (struct file *)self;
	struct zcfs_run runs[MOST_PAGES];
	uint64_t numbers[MOST_PAGES];
	unsigned long long first = 0;
	PyObject *list;
	Py_ssize_t count = 0;
	int join, n;

	if (!PyArg_ParseTuple(args, "OKnp", &list, &first, &count, &join) || !file_ready(self))
		return NULL;
	if (list != Py_None && (!numbers_of(list, numbers, &count) || !count))
		return PyErr_Occurred() ? NULL : PyList_New(0);
	if (count < 0 || count > MOST_PAGES)
		return PyErr_Format(PyExc_ValueError, "too many pages");
	Py_BEGIN_ALLOW_THREADS
	n = zcfs_run_borrow(f->file, list == Py_None ? NULL : numbers, first, (uint32_t)count, join,
			    runs);
	Py_END_ALLOW_THREADS
	if (n < 0)
		return file_error(self, -n, list == Py_None ? first : numbers[0]);
	return list_of(f, join ? run_type : page_type, runs, n);
}

static PyMethodDef file_methods[] = {
	{"page", file_page, METH_O,
	 PyDoc_STR("Borrow page `number` (from 0) for reading.\n\n"
		   "IndexError past the end of the file; BorrowError if it is borrowed exclusively,\n"
		   "or half of the pool is borrowed; OSError if it cannot be read: then the next\n"
		   "call tries again.")},
	{"_borrow_mut", file_borrow_mut, METH_O, NULL},
	{"_borrow_many", file_borrow_many, METH_VARARGS,
	 PyDoc_STR("Borrow as many as can be: (numbers, first, count, join); None: in order.")},
	{0},
};

static PyType_Slot file_slots[] = {
	{Py_tp_init, file_init},
	{Py_tp_dealloc, file_dealloc},
	{Py_tp_traverse, file_traverse},
	{Py_tp_methods, file_methods},
	{0},
};

static PyType_Spec file_spec = {
	.name = "zcfs._native._page.File",
	.basicsize = sizeof(struct file),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = file_slots,
};

/* The module -------------------------------------------------------------------------------------- */

static bool is_borrow(PyObject *type)
{
	return PyType_Check(type) && PyType_IsSubtype((PyTypeObject *)type, borrow_base);
}

static PyObject *use_types(PyObject *module, PyObject *args)
{
	PyObject *page, *run, *mut;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOO", &page, &run, &mut))
		return NULL;
	if (!is_borrow(page) || !is_borrow(run) || !is_borrow(mut))
		return PyErr_Format(PyExc_TypeError, "not a Borrow");
	Py_INCREF(page);
	Py_INCREF(run);
	Py_INCREF(mut);
	page_type = (PyTypeObject *)page;
	run_type = (PyTypeObject *)run;
	mut_type = (PyTypeObject *)mut;
	Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
	{"use_types", use_types, METH_VARARGS,
	 PyDoc_STR("The classes to make: of a page, of a run, and of an exclusive borrow.")},
	{0},
};

static PyModuleDef module_def = {
	PyModuleDef_HEAD_INIT,
	.m_name = "zcfs._native._page",
	.m_size = -1,
	.m_methods = module_methods,
};

static bool add_type(PyObject *module, const char *name, PyType_Spec *spec, PyTypeObject **out)
{
	PyObject *type = PyType_FromSpec(spec);

	*out = (PyTypeObject *)type;
	return type && !PyModule_AddObjectRef(module, name, type);
}

PyMODINIT_FUNC PyInit__page(void)
{
	static PyTypeObject *file_base;
	PyObject *module = PyModule_Create(&module_def);

	if (module && add_type(module, "Frames", &frames_spec, &frames_type) &&
	    add_type(module, "Borrow", &borrow_spec, &borrow_base) &&
	    add_type(module, "File", &file_spec, &file_base))
		return module;
	Py_XDECREF(module);
	return NULL;
}
