/* The one thread pool: workers spin for some tens of microseconds after a region and then sleep.
 *
 * A region is published under a new epoch. A worker joins by raising `active`, then looks whether the region is still
 * open; the caller closes the region once all tasks are handed out and waits for `active` to fall to zero, so a
 * sleeping worker never holds anybody up. A forked child starts with an empty pool.
 */
#define POOL_IMPLEMENTATION
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    MAX_THREADS = 1024,
    SPIN_ROUNDS = 3000,                  /* about 50 us of pause instructions: longer than Python needs between two ops */
    SIGNAL_CHECK_NANOSECONDS = 50000000, /* Ctrl-C is looked for this often inside a long region */
    SCRATCH_ALIGNMENT = 4096,
};

static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static atomic_int sleepers;

static atomic_flag busy = ATOMIC_FLAG_INIT; /* held by the one caller whose region the workers serve */
static atomic_uint epoch;
static atomic_int open_region;
static atomic_int active;
static atomic_int cancelled;
static atomic_ptrdiff_t next_task;
static pool_task region_function;
static void *region_argument;
static ptrdiff_t region_tasks;

static atomic_int wanted_threads = 1;
static int started_workers; /* guarded by `busy` */
static atomic_int spin_rounds = SPIN_ROUNDS;

static _Thread_local int inside_region;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void drain_as_worker(void) {
    for (;;) {
        ptrdiff_t task = atomic_fetch_add_explicit(&next_task, 1, memory_order_relaxed);
        if (task >= region_tasks || atomic_load_explicit(&cancelled, memory_order_relaxed)) return;
        region_function(region_argument, task);
    }
}

#if defined(__linux__)
static atomic_int caller_cpu = -1;

static void note_callers_cpu(void) { atomic_store(&caller_cpu, sched_getcpu()); }

/* Linux may wake a worker on the processor that its caller runs on while another one idles, and leave both there for some 40
 * ms, twice as slow: when it balances, one of them sleeps. (On 2 virtual processors 41 of 305 times after a pause of 0.1 s or more;
 * 3 of 285 so.) The worker moves away, and may go anywhere again after that. */
static void leave_callers_cpu(void) {
    cpu_set_t allowed, others;
    int cpu = sched_getcpu();
    if (cpu < 0 || cpu != atomic_load(&caller_cpu)) return;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < atomic_load(&wanted_threads)) return;
    others = allowed;
    CPU_CLR(cpu, &others);
    if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
static void note_callers_cpu(void) {}
static void leave_callers_cpu(void) {}
#endif

static void wait_for_epoch(unsigned seen) {
    int rounds = atomic_load_explicit(&spin_rounds, memory_order_relaxed);
    for (int i = 0; i < rounds; i++) {
        if (atomic_load_explicit(&epoch, memory_order_acquire) != seen) return;
        relax();
    }
    pthread_mutex_lock(&sleep_lock);
    atomic_fetch_add(&sleepers, 1);
    while (atomic_load(&epoch) == seen) pthread_cond_wait(&wake, &sleep_lock);
    atomic_fetch_sub(&sleepers, 1);
    pthread_mutex_unlock(&sleep_lock);
    leave_callers_cpu();
}

static void *worker(void *index_as_pointer) {
    int index = (int)(intptr_t)index_as_pointer;
    unsigned seen = 0;
    inside_region = 1;
    for (;;) {
        wait_for_epoch(seen);
        seen = atomic_load(&epoch);
        if (index >= atomic_load(&wanted_threads)) continue;
        atomic_fetch_add(&active, 1);
        if (atomic_load(&open_region)) drain_as_worker();
        atomic_fetch_sub(&active, 1);
    }
    return NULL;
}

/* Workers are numbered from 1; the caller of a region is number 0. */
static void start_workers(int threads) {
    while (started_workers < threads - 1) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        int failed = pthread_create(&thread, &attributes, worker, (void *)(intptr_t)(started_workers + 1));
        pthread_attr_destroy(&attributes);
        if (failed) return; /* fewer workers: slower, never wrong */
        started_workers++;
    }
}

/* Only Python's main thread ever sees a pending signal; elsewhere this returns 0. */
static int interrupted(void) {
    PyGILState_STATE state = PyGILState_Ensure();
    int result = PyErr_CheckSignals();
    PyGILState_Release(state);
    return result;
}

static int run_alone(pool_task function, void *argument, ptrdiff_t tasks, int check_signals) {
    int64_t checked = nanoseconds();
    for (ptrdiff_t task = 0; task < tasks; task++) {
        function(argument, task);
        if (check_signals && nanoseconds() - checked > SIGNAL_CHECK_NANOSECONDS) {
            if (interrupted()) return -1;
            checked = nanoseconds();
        }
    }
    return 0;
}

static int drain_as_caller(void) {
    int64_t checked = nanoseconds();
    for (;;) {
        ptrdiff_t task = atomic_fetch_add_explicit(&next_task, 1, memory_order_relaxed);
        if (task >= region_tasks) return 0;
        region_function(region_argument, task);
        if (nanoseconds() - checked > SIGNAL_CHECK_NANOSECONDS) {
            if (interrupted()) {
                atomic_store(&cancelled, 1);
                return -1;
            }
            checked = nanoseconds();
        }
    }
}

static int pool_run(pool_task function, void *argument, ptrdiff_t tasks) {
    int threads = atomic_load_explicit(&wanted_threads, memory_order_relaxed);
    if (inside_region) return run_alone(function, argument, tasks, 0);
    if (tasks <= 1) return run_alone(function, argument, tasks, 1); /* regions within it are shared yet */
    if (threads == 1 || atomic_flag_test_and_set(&busy)) {
        inside_region = 1; /* Ctrl-C is noticed here, between tasks: no task can hand on that one of its regions was left */
        int result = run_alone(function, argument, tasks, 1);
        inside_region = 0;
        return result;
    }

    start_workers(threads);
    region_function = function;
    region_argument = argument;
    region_tasks = tasks;
    atomic_store(&cancelled, 0);
    atomic_store(&next_task, 0);
    atomic_store(&open_region, 1);
    atomic_fetch_add(&epoch, 1);
    if (atomic_load(&sleepers) > 0) {
        note_callers_cpu();
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleep_lock);
    }

    inside_region = 1;
    int result = drain_as_caller();
    inside_region = 0;

    atomic_store(&open_region, 0);
    for (int round = 0; atomic_load(&active) > 0; round++) {
        if (round < SPIN_ROUNDS) relax();
        else sched_yield(); /* more threads than cores: let the worker that we wait for run */
    }
    atomic_flag_clear(&busy);
    return result;
}

/* Scratch memory: growing buffers of a thread, freed when the thread ends. */
typedef struct {
    void *memory;
    size_t bytes;
} growing;

static _Thread_local growing task_buffer, shared_buffer;
static pthread_key_t task_key, shared_key;

static void *grown(growing *buffer, pthread_key_t key, size_t bytes) {
    if (bytes > buffer->bytes) {
        free(buffer->memory);
        size_t rounded = (bytes + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
        buffer->memory = aligned_alloc(SCRATCH_ALIGNMENT, rounded);
        if (buffer->memory == NULL) {
            fprintf(stderr, "fastmixer: out of memory for %zu bytes of kernel scratch\n", rounded);
            abort();
        }
        buffer->bytes = rounded;
        pthread_setspecific(key, buffer->memory);
    }
    return buffer->memory;
}

static void *pool_scratch(size_t bytes) { return grown(&task_buffer, task_key, bytes); }

static void *pool_shared(size_t bytes) { return grown(&shared_buffer, shared_key, bytes); }

static void forget_workers_in_child(void) {
    pthread_mutex_init(&sleep_lock, NULL);
    pthread_cond_init(&wake, NULL);
    atomic_store(&sleepers, 0);
    atomic_store(&active, 0);
    atomic_store(&open_region, 0);
    atomic_store(&epoch, 0);
    started_workers = 0;
    inside_region = 0;
    atomic_flag_clear(&busy);
}

/* `processors` is what this process may run on: with more threads than that, spinning would steal their time. */
void pool_set_threads(int threads, int processors) {
    atomic_store(&wanted_threads, threads < MAX_THREADS ? threads : MAX_THREADS);
    atomic_store(&spin_rounds, threads <= processors ? SPIN_ROUNDS : 0);
}

int pool_get_threads(void) { return atomic_load(&wanted_threads); }

static const pool_api api = {pool_run, pool_scratch, pool_shared, pool_get_threads};

PyObject *pool_make_capsule(void) {
    static int once;
    if (!once) {
        once = 1;
        pthread_atfork(NULL, NULL, forget_workers_in_child);
        pthread_key_create(&task_key, free);
        pthread_key_create(&shared_key, free);
    }
    return PyCapsule_New((void *)&api, POOL_CAPSULE, NULL);
}
