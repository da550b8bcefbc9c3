/* Makes orphans as fast as possible: N processes that end at once and whose parents end too, in
 * batches, so that whoever adopts orphans has to reap them.
 *
 *   orphans N
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BATCH = 500 };

static void batch(long size)
{
    for (long n = 0; n < size; n++) {
        /* No copy of memory: the child does nothing with it. */
        pid_t child = vfork();
        if (child == 0)
            _exit(0);
        /* Everybody's numbers are taken by those that nobody has reaped yet. */
        if (child < 0) {
            n--;
            sched_yield();
        }
    }
    _exit(0);
}

int main(int count, char **words)
{
    long left = count > 1 ? atol(words[1]) : 0;
    /* A parent and its child never run at once; on one CPU neither waits for the other to wake up. */
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    sched_setaffinity(0, sizeof here, &here);
    while (left > 0) {
        pid_t parent = fork();
        if (parent == 0)
            batch(left < BATCH ? left : BATCH);
        if (parent > 0) {
            waitpid(parent, NULL, 0);
            left -= BATCH;
        } else {
            sched_yield();
        }
    }
    return 0;
}
