/* Simulates a power loss: only synced data survives.
 *
 * Preloaded into the server. For the folder $POWERLOSS_FOLDER it maintains a copy $POWERLOSS_DISK. The ranges that were written to a
 * file are copied there only when that file is synced (fsync, fdatasync). After a SIGKILL, the copy is what a machine
 * would find on its disk after a power loss. Reads of the kernel's boot id are redirected to $POWERLOSS_BOOT_ID, because each power loss means another boot.
 *
 * A file that exists when the process starts counts as completely dirty, because an earlier process may have left parts of it in
 * the page cache. A removed file is removed from the copy at once. SQLite's -shm file is not copied, because SQLite rebuilds it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 65536
#define RANGES 65536

struct range { off_t from, to; };
struct file { char *name; struct range *ranges; int count; int whole; };

static struct file *files[FILES]; /* by descriptor */
static struct file *known[256];   /* by name */
static int known_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int (*real_open)(const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static int (*real_ftruncate)(int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_unlink)(const char *);
static int (*real_rename)(const char *, const char *);

static void *next(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) { dprintf(2, "powerloss: cannot find %s\n", name); abort(); }
  return found;
}

/* Other preloaded libraries open files before a constructor of this library would run. */
static void begin(void) {
  if (real_rename) return;
  real_open = next("open"), real_close = next("close"), real_write = next("write"), real_pwrite = next("pwrite64");
  real_writev = next("writev"), real_ftruncate = next("ftruncate64"), real_fsync = next("fsync"), real_fdatasync = next("fdatasync");
  real_unlink = next("unlink"), real_rename = next("rename");
}

/* Returns the part of a path below the folder, or NULL. */
static const char *below(const char *path) {
  static __thread char full[PATH_MAX];
  const char *folder = getenv("POWERLOSS_FOLDER");
  if (!folder || !path) return NULL;
  if (path[0] == '/') snprintf(full, sizeof full, "%s", path);
  else {
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) return NULL;
    if (snprintf(full, sizeof full, "%s/%s", here, path) >= (int)sizeof full) return NULL;
  }
  size_t length = strlen(folder);
  if (strncmp(full, folder, length) || full[length] != '/') return NULL;
  const char *name = full + length + 1;
  size_t rest = strlen(name);
  return rest > 4 && !strcmp(name + rest - 4, "-shm") ? NULL : name;
}

static void on_disk(char *path, const char *name) {
  snprintf(path, PATH_MAX, "%s/%s", getenv("POWERLOSS_DISK"), name);
}

static struct file *file_named(const char *name) {
  for (int i = 0; i < known_count; i++)
    if (!strcmp(known[i]->name, name)) return known[i];
  if (known_count == 256) { dprintf(2, "powerloss: too many files\n"); abort(); }
  struct file *file = calloc(1, sizeof *file);
  file->name = strdup(name), file->ranges = calloc(RANGES, sizeof *file->ranges), file->whole = 1;
  return known[known_count++] = file;
}

static void wrote(int fd, off_t from, ssize_t count) {
  if (fd < 0 || fd >= FILES || count <= 0) return;
  pthread_mutex_lock(&lock);
  struct file *file = files[fd];
  if (file && !file->whole) {
    struct range *last = file->count ? &file->ranges[file->count - 1] : NULL;
    if (last && last->to == from) last->to += count;
    else if (file->count < RANGES) file->ranges[file->count++] = (struct range){from, from + count};
    else file->whole = 1;
  }
  pthread_mutex_unlock(&lock);
}

static void copy(int from, int to, struct range range) {
  static char bytes[1 << 16];
  while (range.from < range.to) {
    size_t wanted = range.to - range.from < (off_t)sizeof bytes ? (size_t)(range.to - range.from) : sizeof bytes;
    ssize_t count = pread(from, bytes, wanted, range.from);
    if (count <= 0) return;
    if (real_pwrite(to, bytes, count, range.from) != count) { dprintf(2, "powerloss: cannot write the copy\n"); abort(); }
    range.from += count;
  }
}

static void synced(int fd) {
  if (fd < 0 || fd >= FILES) return;
  pthread_mutex_lock(&lock);
  struct file *file = files[fd];
  struct stat status;
  if (file && !fstat(fd, &status)) {
    char path[PATH_MAX];
    on_disk(path, file->name);
    int copied = real_open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    int source = real_open(self, O_RDONLY | O_CLOEXEC);
    if (copied < 0 || source < 0) { dprintf(2, "powerloss: cannot copy %s\n", file->name); abort(); }
    if (file->whole) copy(source, copied, (struct range){0, status.st_size});
    else for (int i = 0; i < file->count; i++) copy(source, copied, file->ranges[i]);
    if (real_ftruncate(copied, status.st_size)) abort();
    file->whole = file->count = 0;
    real_close(source), real_close(copied);
  }
  pthread_mutex_unlock(&lock);
}

static int opened(int fd, const char *path, int flags) {
  const char *name = below(path);
  if (fd < 0 || fd >= FILES || !name || (flags & O_ACCMODE) == O_RDONLY) return fd;
  pthread_mutex_lock(&lock);
  files[fd] = file_named(name);
  pthread_mutex_unlock(&lock);
  return fd;
}

static const char *instead(const char *path) {
  const char *boot = getenv("POWERLOSS_BOOT_ID");
  return boot && path && !strcmp(path, "/proc/sys/kernel/random/boot_id") ? boot : path;
}

#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); }

int open(const char *path, int flags, ...) { begin(); MODE(flags) return opened(real_open(instead(path), flags, mode), path, flags); }
int open64(const char *path, int flags, ...) { begin(); MODE(flags) return opened(real_open(instead(path), flags | O_LARGEFILE, mode), path, flags); }

int close(int fd) {
  begin();
  if (fd >= 0 && fd < FILES) {
    pthread_mutex_lock(&lock);
    files[fd] = NULL;
    pthread_mutex_unlock(&lock);
  }
  return real_close(fd);
}

ssize_t write(int fd, const void *bytes, size_t count) {
  begin();
  ssize_t done = real_write(fd, bytes, count);
  if (done > 0 && fd < FILES && files[fd]) wrote(fd, lseek(fd, 0, SEEK_CUR) - done, done);
  return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  begin();
  ssize_t done = real_writev(fd, parts, count);
  if (done > 0 && fd < FILES && files[fd]) wrote(fd, lseek(fd, 0, SEEK_CUR) - done, done);
  return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t at) {
  begin();
  ssize_t done = real_pwrite(fd, bytes, count, at);
  wrote(fd, at, done);
  return done;
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }

/* A new size takes effect in the copy at the next sync. */
int ftruncate64(int fd, off_t size) { begin(); return real_ftruncate(fd, size); }
int ftruncate(int fd, off_t size) { begin(); return real_ftruncate(fd, size); }

int fsync(int fd) { begin(); int done = real_fsync(fd); if (!done) synced(fd); return done; }
int fdatasync(int fd) { begin(); int done = real_fdatasync(fd); if (!done) synced(fd); return done; }

int unlink(const char *path) {
  begin();
  const char *name = below(path);
  int done = real_unlink(path);
  if (!done && name) {
    char gone[PATH_MAX];
    on_disk(gone, name);
    real_unlink(gone);
    pthread_mutex_lock(&lock);
    struct file *file = file_named(name);
    file->whole = 1, file->count = 0;
    pthread_mutex_unlock(&lock);
  }
  return done;
}

int rename(const char *from, const char *to) {
  begin();
  const char *name = below(from);
  char old[PATH_MAX] = "", new[PATH_MAX] = "";
  if (name) on_disk(old, name);
  name = below(to);
  if (name) on_disk(new, name);
  int done = real_rename(from, to);
  if (!done && *old && *new) real_rename(old, new);
  return done;
}
