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
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_THREADS = 1024,
    SPIN_ROUNDS = 3000,                  /* about 50 us of pause instructions: longer than Python needs between two ops */
    SIGNAL_CHECK_NANOSECONDS = 50000000, /* Ctrl-C is looked for this often inside a long region */
    SCRATCH_ALIGNMENT = 4096,
    HUGE_PAGE = 1 << 21,
    BARRED_NANOSECONDS = 10000000, /* no sooner is another processor barred, or tried: callers may take turns */
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
static atomic_int worker_ids[MAX_THREADS]; /* as the system knows them; 0: not running yet */
static int barred_cpu = -1;                /* on which workers may not run; this and barred_at are guarded by `busy` */
static int64_t barred_at;

static void tell_worker_id(int index) { atomic_store(&worker_ids[index], (int)syscall(SYS_gettid)); }

static void forget_worker_ids(void) { memset(worker_ids, 0, sizeof worker_ids); }

static void forget_barred_cpu(void) { barred_cpu = -1, barred_at = 0; }

/* Linux may wake a worker on the processor that its caller runs on while another one idles, and leave both there for as long as
 * regions follow one another, each twice as slow: when it balances, one of them sleeps. (On 2 virtual processors four of five runs
 * of 40 embedding gradients, after a pause.) So the caller's processor is barred to workers, unless they need it. */
static void bar_callers_cpu(int threads) {
    cpu_set_t others;
    const int cpu = sched_getcpu();
    if (cpu < 0 || cpu == barred_cpu || atomic_load_explicit(&spin_rounds, memory_order_relaxed) == 0) return;
    const int64_t now = nanoseconds();
    if (now - barred_at < BARRED_NANOSECONDS) return;
    barred_at = now;
    if (sched_getaffinity(0, sizeof others, &others) != 0 || CPU_COUNT(&others) < threads) return;
    CPU_CLR(cpu, &others);
    barred_cpu = cpu;
    for (int i = 1; i <= started_workers; i++) {
        const int id = atomic_load(&worker_ids[i]);
        if (id == 0 || sched_setaffinity(id, sizeof others, &others) != 0) barred_cpu = -1; /* once more, later */
    }
}
#else
static void tell_worker_id(int index) { (void)index; }
static void forget_worker_ids(void) {}
static void forget_barred_cpu(void) {}
static void bar_callers_cpu(int threads) { (void)threads; }
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
}

static void *worker(void *index_as_pointer) {
    int index = (int)(intptr_t)index_as_pointer;
    unsigned seen = 0;
    inside_region = 1;
    tell_worker_id(index);
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
        forget_barred_cpu();
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
    bar_callers_cpu(threads);
    region_function = function;
    region_argument = argument;
    region_tasks = tasks;
    atomic_store(&cancelled, 0);
    atomic_store(&next_task, 0);
    atomic_store(&open_region, 1);
    atomic_fetch_add(&epoch, 1);
    if (atomic_load(&sleepers) > 0) {
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
        const size_t alignment = bytes >= HUGE_PAGE / 2 ? HUGE_PAGE : SCRATCH_ALIGNMENT;
        const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
        buffer->memory = aligned_alloc(alignment, rounded);
        if (buffer->memory == NULL) {
            fprintf(stderr, "fastmixer: out of memory for %zu bytes of kernel scratch\n", rounded);
            abort();
        }
#if defined(MADV_HUGEPAGE)
        /* Small pages lie anywhere, and by bad luck too many of a block's share their places in L2 (products twice as slow,
         * until the process ends). Where the system has no huge page to give, small ones do. */
        if (alignment == HUGE_PAGE) madvise(buffer->memory, rounded, MADV_HUGEPAGE);
#endif
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
    forget_worker_ids();
    forget_barred_cpu();
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
