/*
 * Preloaded into a server under test, for what cannot be done to a process from outside:
 *
 * - CLOCK_MONOTONIC does not go on while a machine is suspended, and CLOCK_BOOTTIME does. A process that is
 *   stopped with SIGSTOP notices both. Here the former is set back by as much as the test says.
 * - A process is stopped, or one of its threads hangs, between epoll_wait and recv: whoever is about to
 *   receive one of two texts.
 * - The resolver of host names gives no answer, while the test says so.
 *
 * The test and the server share a file, whose name is in ORDER_MACHINE.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netdb.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define STOP "STOP HERE"
#define HANG "HANG HERE"
#define HOST "redis.invalid"
#define SECOND 1000000000L

struct machine {
    /* Written by the test. */
    _Atomic int64_t suspended; /* for how long the machine was, in ns */
    _Atomic int64_t hangs;     /* whoever receives HANG waits */
    _Atomic int64_t is_mute;   /* the resolver gives no answer */
    /* Written here. */
    _Atomic int64_t hanging;   /* how many threads wait */
    _Atomic int64_t asked;     /* how often the resolver gave none */
};

static struct machine *machine;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static long (*real_syscall)(long, ...);
static int (*real_clock_nanosleep)(clockid_t, int, const struct timespec *, struct timespec *);
static ssize_t (*real_recv)(int, void *, size_t, int);
static int (*real_getaddrinfo)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

__attribute__((constructor)) static void begin(void) {
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    real_syscall = dlsym(RTLD_NEXT, "syscall");
    real_clock_nanosleep = dlsym(RTLD_NEXT, "clock_nanosleep");
    real_recv = dlsym(RTLD_NEXT, "recv");
    real_getaddrinfo = dlsym(RTLD_NEXT, "getaddrinfo");
    const char *path = getenv("ORDER_MACHINE");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) {
        return;
    }
    void *map = mmap(NULL, sizeof(struct machine), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (map != MAP_FAILED) {
        machine = map;
    }
}

/* The clock as the process sees it (sign -1), and back (sign 1). */
static void shift(struct timespec *time, int sign) {
    int64_t ns = time->tv_sec * SECOND + time->tv_nsec + sign * (machine ? machine->suspended : 0);
    time->tv_sec = ns / SECOND;
    time->tv_nsec = ns % SECOND;
}

static void nap(void) {
    struct timespec time = {0, SECOND / 100};
    nanosleep(&time, NULL);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = real_clock_gettime(clock, time);
    if (result == 0 && clock == CLOCK_MONOTONIC) {
        shift(time, -1);
    }
    return result;
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *left) {
    struct timespec until = *time;
    if (clock == CLOCK_MONOTONIC && (flags & TIMER_ABSTIME)) {
        shift(&until, 1);
    }
    return real_clock_nanosleep(clock, flags, &until, left);
}

/* Rust waits for a moment of CLOCK_MONOTONIC by the system call itself. */
long syscall(long number, ...) {
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(arguments, long);
    }
    va_end(arguments);
    struct timespec until;
    int is_wait = number == SYS_futex && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET;
    if (is_wait && !(a[1] & FUTEX_CLOCK_REALTIME) && a[3] != 0) {
        until = *(struct timespec *)a[3];
        shift(&until, 1);
        a[3] = (long)&until;
    }
    return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

ssize_t recv(int socket, void *buffer, size_t size, int flags) {
    static _Atomic int was_stopped;
    ssize_t seen = machine && flags == 0 ? real_recv(socket, buffer, size, MSG_PEEK | MSG_DONTWAIT) : 0;
    if (seen > 0 && memmem(buffer, seen, STOP, strlen(STOP)) && !atomic_exchange(&was_stopped, 1)) {
        raise(SIGSTOP); /* this thread goes no further */
    }
    if (seen > 0 && machine->hangs && memmem(buffer, seen, HANG, strlen(HANG))) {
        machine->hanging++;
        while (machine->hangs) {
            nap();
        }
        machine->hanging--;
    }
    return real_recv(socket, buffer, size, flags);
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (machine && machine->is_mute) {
        machine->asked++;
        while (machine->is_mute) {
            nap();
        }
    }
    if (host && strcmp(host, HOST) == 0) {
        host = "127.0.0.1";
    }
    return real_getaddrinfo(host, service, hints, found);
}
