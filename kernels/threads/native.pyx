"""Python's handle on the native thread pool (pool.c): its size, and the capsule by which native kernels reach it."""

cdef extern from *:
    """
    extern void pool_set_threads(int threads, int processors);
    extern int pool_get_threads(void);
    extern PyObject *pool_make_capsule(void);
    """
    void pool_set_threads(int threads, int processors)
    int pool_get_threads()
    object pool_make_capsule()


_api = pool_make_capsule()


def set_threads(int threads, int processors):
    """Use this many threads in every region from now on; `processors` is how many may run at once."""
    pool_set_threads(threads, processors)


def get_threads():
    """The number of threads that a region uses."""
    return pool_get_threads()
