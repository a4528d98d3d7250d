/* A pool of threads that compute for callers. Threads start when they are first needed and are kept for later
 * calls, since starting a thread takes longer than the work of a small layer. Each extension module has its
 * own pool.
 *
 * After a call, a thread spins for SPIN_NS before it sleeps: the next call often follows at once. A forked
 * process begins without threads.
 *
 * Threads are kept off the core of the caller that offers work. When Linux sees no idle core, it wakes a
 * thread on the waker's core, and in a virtual machine a halted virtual core does not look idle. The thread
 * would then compete with the caller while another core has nothing to do. SCHED_BATCH prevents a woken
 * thread from preempting what runs on the core where it wakes. */

#ifndef FAASMOE_POOL_H
#define FAASMOE_POOL_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define TEAM_MAX 64   /* members of a team, the caller among them */
#define SPIN_NS 10000 /* less than the time to wake a thread */

#if defined(__x86_64__)
static inline void cpu_relax(void) { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
static inline void cpu_relax(void) { __asm__ volatile("yield"); }
#else
static inline void cpu_relax(void) {}
#endif

static inline int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Work for up to `places` threads. Each thread that takes a place gets the next of `members` and increments
 * `taken`. The caller must withdraw the offer. The memory behind `members` must stay until all threads that
 * took a place are done. */
struct offer {
    void (*work)(void *member);
    char *members;
    size_t stride;
    int places; /* offered */
    int left;   /* places not taken yet; guarded by the pool's mutex */
    atomic_int *taken;
    struct offer *next;
};

struct pool {
    pthread_mutex_t mutex;
    pthread_cond_t offered;
    struct offer *offers; /* those with places left, newest first */
    /* Places left in all offers. Changes under the mutex, and is atomic because idle threads poll it without
     * the mutex. They may read an old number, so they check `offers` under the mutex before they act. */
    atomic_int places;
    int threads, idle; /* idle: without work, spinning or asleep */
    pthread_t thread[TEAM_MAX];
    int avoided; /* the core that the threads may not use; NO_CORE for none */
};

#define NO_CORE (-1)

static struct pool pool = {
    .mutex = PTHREAD_MUTEX_INITIALIZER, .offered = PTHREAD_COND_INITIALIZER, .avoided = NO_CORE};

/* In a forked child only the forking thread exists. The pool's threads are gone, and one of them may have
 * held the mutex at the time of the fork, so the child starts with new ones. Offers were in other threads'
 * calls. */
static void pool_after_fork(void) {
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.offered, NULL);
    pool.offers = NULL;
    atomic_store(&pool.places, 0);
    pool.threads = pool.idle = 0;
    pool.avoided = NO_CORE;
}

#ifdef __linux__
static cpu_set_t pool_cores; /* that this process may use, as of the import */

static void pool_register(void) {
    pthread_atfork(NULL, NULL, pool_after_fork);
    if (sched_getaffinity(0, sizeof pool_cores, &pool_cores)) CPU_ZERO(&pool_cores);
}

static void pool_thread_begins(void) {
    const struct sched_param none = {0};
    pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
}

/* Keeps all threads off the caller's core. The mutex must be held. */
static void pool_keep_off(void) {
    const int core = sched_getcpu();
    if (core < 0 || core == pool.avoided || CPU_COUNT(&pool_cores) < 2) return;
    cpu_set_t others = pool_cores;
    CPU_CLR(core, &others);
    for (int i = 0; i < pool.threads; i++) pthread_setaffinity_np(pool.thread[i], sizeof others, &others);
    pool.avoided = core;
}
#else
static void pool_register(void) { pthread_atfork(NULL, NULL, pool_after_fork); }
static void pool_thread_begins(void) {}
static void pool_keep_off(void) {}
#endif

/* Must be called before anything else. May be called again, since Python may initialise a module again. */
static void pool_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, pool_register);
}

/* pool_unlink, pool_take, pool_wait and pool_grow are called with the mutex held. */
static void pool_unlink(struct offer *offer) {
    struct offer **link = &pool.offers;
    while (*link && *link != offer) link = &(*link)->next;
    if (*link) *link = offer->next;
}

static void *pool_take(struct offer *offer) {
    void *member = offer->members + (size_t)(offer->places - offer->left) * offer->stride;
    atomic_fetch_add(offer->taken, 1);
    atomic_fetch_sub(&pool.places, 1);
    if (--offer->left == 0) pool_unlink(offer);
    return member;
}

/* Waits for an offer: spins without the mutex, then sleeps. */
static void pool_wait(void) {
    pthread_mutex_unlock(&pool.mutex);
    for (int64_t end = now_ns() + SPIN_NS; !atomic_load(&pool.places) && now_ns() < end;) cpu_relax();
    pthread_mutex_lock(&pool.mutex);
    while (!pool.offers) pthread_cond_wait(&pool.offered, &pool.mutex);
}

static void *pool_thread(void *unused) {
    pool_thread_begins();
    pthread_mutex_lock(&pool.mutex);
    for (;; pool.idle++) {
        if (!pool.offers) pool_wait();
        pool.idle--;
        void (*work)(void *member) = pool.offers->work;
        void *member = pool_take(pool.offers);
        pthread_mutex_unlock(&pool.mutex);
        work(member);
        pthread_mutex_lock(&pool.mutex);
    }
    return unused;
}

/* Starts up to `count` threads, as many as the system allows. They block all signals, so that signals reach
 * only threads that Python knows. A new thread may use any core, so `avoided` has to be applied again. */
static void pool_grow(int count) {
    pthread_attr_t detached;
    sigset_t all, before;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; count > 0 && pool.threads < TEAM_MAX; count--, pool.threads++, pool.idle++) {
        if (pthread_create(&pool.thread[pool.threads], &detached, pool_thread, NULL) != 0) break;
        pool.avoided = NO_CORE;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
}

static void pool_offer(struct offer *offer) {
    offer->left = offer->places;
    pthread_mutex_lock(&pool.mutex);
    offer->next = pool.offers;
    pool.offers = offer;
    const int places = atomic_fetch_add(&pool.places, offer->places) + offer->places;
    pool_grow(places - pool.idle);
    if (offer->places > 0) pool_keep_off();
    for (int i = 0; i < offer->places; i++) pthread_cond_signal(&pool.offered);
    pthread_mutex_unlock(&pool.mutex);
}

/* After this call, no thread takes a place of the offer any more. May be called again. */
static void pool_withdraw(struct offer *offer) {
    pthread_mutex_lock(&pool.mutex);
    atomic_fetch_sub(&pool.places, offer->left);
    if (offer->left > 0) pool_unlink(offer);
    offer->left = 0;
    pthread_mutex_unlock(&pool.mutex);
}

#endif
