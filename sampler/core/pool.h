/* A few threads that wait for work, so that a call can share its rows.
 *
 * The threads belong to the process and are made when first asked for. Each sleeps on a lock of its
 * own (never spins), runs the task it is woken for, and says so on another. They touch no Python
 * object. One call at a time has them; a second one that comes meanwhile does without. After a fork
 * the child has none, sees that by the process id, and makes its own when it asks.
 */
#ifndef SAMPLER_POOL_H
#define SAMPLER_POOL_H

#include "dispatch.h" /* for SAMPLER_X86 */

#include <Python.h>
#include <pythread.h>
#include <stdint.h>
#if defined(_MSC_VER)
#include <intrin.h>
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif

#define MOST_WORKERS 63 /* not counting the thread that calls */
#define MOST_LOOKS 1500

typedef void (*Task)(void *job, int worker);

typedef struct {
    PyThread_type_lock wake; /* held while there is nothing to do */
    PyThread_type_lock done; /* held until the task is done */
    Task task;
    void *job;
    int number;
    int64_t busy;
} Worker;

static struct {
    long process;
    int count;
    int64_t busy;
    Worker workers[MOST_WORKERS];
} pool;

/* *value += step, returning what it was; seen by all threads in one order. */
static inline int64_t fetch_add(int64_t *value, int64_t step)
{
#if defined(_MSC_VER)
    return _InterlockedExchangeAdd64(value, step);
#else
    return __atomic_fetch_add(value, step, __ATOMIC_SEQ_CST);
#endif
}

static inline void cpu_pause(void)
{
#if defined(SAMPLER_X86)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ __volatile__("yield");
#endif
}

static void pool_work(void *argument)
{
    Worker *worker = argument;
    for (;;) {
        PyThread_acquire_lock(worker->wake, WAIT_LOCK);
        worker->task(worker->job, worker->number);
        fetch_add(&worker->busy, -1);
        PyThread_release_lock(worker->done);
    }
}

static int pool_add(void)
{
    Worker *worker = pool.workers + pool.count;
    worker->number = pool.count;
    worker->wake = PyThread_allocate_lock();
    worker->done = PyThread_allocate_lock();
    if (worker->wake && worker->done) {
        PyThread_acquire_lock(worker->wake, WAIT_LOCK);
        PyThread_acquire_lock(worker->done, WAIT_LOCK);
        if (PyThread_start_new_thread(pool_work, worker) != PYTHREAD_INVALID_THREAD_ID) {
            pool.count++;
            return 1;
        }
    }
    if (worker->wake)
        PyThread_free_lock(worker->wake);
    if (worker->done)
        PyThread_free_lock(worker->done);
    return 0;
}

/* Take the pool for a call that could use `wanted` more threads. Returns how many
 * there are: 0 where another call has them, and then `pool_leave` must not be called. Under a
 * lock, or the GIL. */
static int pool_enter(int wanted)
{
    const long process = (long)getpid();
    if (pool.process != process) {
        /* The first call, or a child: what is written here belongs to threads it does not have. */
        memset(&pool, 0, sizeof pool);
        pool.process = process;
    }
    if (fetch_add(&pool.busy, 1) != 0) {
        fetch_add(&pool.busy, -1);
        return 0;
    }
    if (wanted > MOST_WORKERS)
        wanted = MOST_WORKERS;
    while (pool.count < wanted && pool_add())
        ;
    if (pool.count == 0)
        fetch_add(&pool.busy, -1);
    return pool.count < wanted ? pool.count : wanted;
}

/* Run task(job, 0) ... task(job, count - 1) on as many threads. */
static void pool_start(int count, Task task, void *job)
{
    for (int i = 0; i < count; i++) {
        pool.workers[i].task = task;
        pool.workers[i].job = job;
        fetch_add(&pool.workers[i].busy, 1);
        PyThread_release_lock(pool.workers[i].wake);
    }
}

/* Wait until all of them are done. The last rows take less time than falling asleep and waking up
 * does, so look a few times first: some 50 us at the most. */
static void pool_wait(int count)
{
    for (int look = 0, i = 0; look < MOST_LOOKS && i < count; look++) {
        while (i < count && fetch_add(&pool.workers[i].busy, 0) == 0)
            i++;
        cpu_pause();
    }
    for (int i = 0; i < count; i++)
        PyThread_acquire_lock(pool.workers[i].done, WAIT_LOCK);
}

static void pool_leave(void) { fetch_add(&pool.busy, -1); }

#endif
