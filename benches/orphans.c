/* Makes orphans as fast as possible: N processes that end at once and whose parents end too, in
 * batches, so that whoever adopts orphans has to reap them.
 *
 *   orphans N
 */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BATCH = 500 };

int main(int count, char **words)
{
    long left = count > 1 ? atol(words[1]) : 0;
    while (left > 0) {
        long batch = left < BATCH ? left : BATCH;
        pid_t parent = fork();
        if (parent == 0) {
            for (long n = 0; n < batch; n++) {
                /* No copy of memory: the child does nothing with it. */
                pid_t child = vfork();
                if (child == 0)
                    _exit(0);
                if (child < 0)
                    _exit(1);
            }
            _exit(0);
        }
        int status;
        if (parent < 0 || waitpid(parent, &status, 0) != parent)
            return 1;
        /* Where no process could be made, the rest of the batch is tried again. */
        if (status == 0)
            left -= batch;
    }
    return 0;
}
