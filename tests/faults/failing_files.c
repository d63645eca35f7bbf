/* Makes file operations below a folder fail, for tests. Load it with LD_PRELOAD.

   faults_arm(root, nth, error, lasting) lets the nth operation that changes files below root fail
   with an error, and with `lasting` every later one too. faults_count() is the number of such
   operations so far. Reading never fails. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[4096];
static long nth, count;
static int failure, lasting;

void faults_arm(const char *folder, long n, int error, int lasts) {
  pthread_mutex_lock(&lock);
  snprintf(root, sizeof root, "%s", folder);
  nth = n;
  failure = error;
  lasting = lasts;
  count = 0;
  pthread_mutex_unlock(&lock);
}

long faults_count(void) { return count; }

static int fails(const char *path) {
  if (!root[0] || !path || strncmp(path, root, strlen(root))) return 0;
  pthread_mutex_lock(&lock);
  count++;
  int now = nth && (count == nth || (lasting && count > nth));
  pthread_mutex_unlock(&lock);
  if (now) errno = failure;
  return now;
}

static int fails_fd(int fd) {
  char link[64], path[4096];
  if (!root[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return fails(path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  return fails_fd(fd) ? -1 : NEXT(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  return fails_fd(fd) ? -1 : NEXT(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  return fails_fd(fd) ? -1 : NEXT(pwrite64)(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
  return fails_fd(fd) ? -1 : NEXT(writev)(fd, parts, n);
}
int fsync(int fd) { return fails_fd(fd) ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) { return fails_fd(fd) ? -1 : NEXT(fdatasync)(fd); }
int rename(const char *from, const char *to) {
  return fails(from) ? -1 : NEXT(rename)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  return fails(from) ? -1 : NEXT(renameat)(a, from, b, to);
}
int mkdir(const char *path, mode_t mode) { return fails(path) ? -1 : NEXT(mkdir)(path, mode); }

#define OPENS(name, call, ...)                                      \
  mode_t mode = 0;                                                  \
  if (flags & (O_CREAT | O_TMPFILE)) {                              \
    va_list rest;                                                   \
    va_start(rest, flags);                                          \
    mode = va_arg(rest, mode_t);                                    \
    va_end(rest);                                                   \
    if ((flags & O_CREAT) && fails(path)) return -1;                \
  }                                                                 \
  return NEXT(name) call;

int open(const char *path, int flags, ...) { OPENS(open, (path, flags, mode)) }
int open64(const char *path, int flags, ...) { OPENS(open64, (path, flags, mode)) }
int openat(int at, const char *path, int flags, ...) { OPENS(openat, (at, path, flags, mode)) }
int openat64(int at, const char *path, int flags, ...) { OPENS(openat64, (at, path, flags, mode)) }
