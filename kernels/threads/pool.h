/* The one thread pool, as other native modules see it.
 *
 * A parallel region hands out tasks 0..tasks-1, dynamically, to the caller and the workers. What a task computes
 * must not depend on who runs it or on how many threads there are. Knows nothing of Python arrays or ops.
 */
#ifndef FASTMIXER_POOL_H
#define FASTMIXER_POOL_H

#include <Python.h>
#include <stddef.h>

#define POOL_CAPSULE "fastmixer.kernels.threads.native._api"

typedef void (*pool_task)(void *argument, ptrdiff_t task);

typedef struct {
    int (*run)(pool_task function, void *argument, ptrdiff_t tasks);
    void *(*scratch)(size_t bytes);
    void *(*shared)(size_t bytes);
    int (*threads)(void);
} pool_api;

#ifndef POOL_IMPLEMENTATION
static const pool_api *pool_functions;

/* Call once when a native module is imported; -1 with an exception set if the pool is missing. */
static inline int pool_import(void) {
    pool_functions = (const pool_api *)PyCapsule_Import(POOL_CAPSULE, 0);
    return pool_functions == NULL ? -1 : 0;
}

/* Runs every task; returns when all are done. Call it without the GIL. A nested call, or one that finds the pool
 * taken by another Python thread, runs its tasks in the calling thread. Returns -1 with KeyboardInterrupt set (and
 * tasks left undone) when Ctrl-C came; otherwise 0. */
static inline int pool_run(pool_task function, void *argument, ptrdiff_t tasks) {
    return pool_functions->run(function, argument, tasks);
}

/* This thread's scratch memory, 64-byte aligned, contents undefined; valid until the thread's next call. */
static inline void *pool_scratch(size_t bytes) { return pool_functions->scratch(bytes); }

/* The same, a second buffer: what a caller lends to the tasks of its regions. A task calls it only where its
 * region's caller lends nothing. */
static inline void *pool_shared(size_t bytes) { return pool_functions->shared(bytes); }

/* How many threads share a region. For guesses about what comes next only: results must not depend on it. */
static inline int pool_threads(void) { return pool_functions->threads(); }
#endif

#endif
