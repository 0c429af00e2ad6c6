/* A wall clock that a test can set: the real one plus the number of seconds in the file $CLOCK_FILE, 64 bits in native byte order. To
 * set the clock, overwrite the file in place.
 *
 * Preloaded into the server. Monotonic clocks are not changed. A killed process leaves nothing behind, and nothing needs a
 * cleanup. libfaketime, in contrast, creates a semaphore named after the process id and, after a SIGKILL, refuses to
 * start the next process with the same id. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int64_t *offset_secs;

/* Other preloaded libraries may ask for the time before this library's constructor runs; they get the real time. */
__attribute__((constructor)) static void begin(void) {
  if (!real_clock_gettime) real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  const char *name = getenv("CLOCK_FILE");
  if (!name || offset_secs) return;
  int file = open(name, O_RDONLY | O_CLOEXEC);
  if (file < 0 || lseek(file, 0, SEEK_END) != sizeof *offset_secs) {
    dprintf(2, "clock: %s does not have %zu bytes\n", name, sizeof *offset_secs);
    abort();
  }
  void *mapped = mmap(NULL, sizeof *offset_secs, PROT_READ, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) { perror("clock"); abort(); }
  close(file);
  offset_secs = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!real_clock_gettime) real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real_clock_gettime(clock, now);
  if (!failed && offset_secs && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += __atomic_load_n(offset_secs, __ATOMIC_RELAXED);
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec precise;
  if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
  now->tv_sec = precise.tv_sec, now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *also) {
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  if (also) *also = now.tv_sec;
  return now.tv_sec;
}
