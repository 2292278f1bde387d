/* The commands of cairn-bench that aren't a load; each takes what stands behind its name. */
#ifndef CAIRN_BENCH_COMMANDS_H
#define CAIRN_BENCH_COMMANDS_H

#include <signal.h>

/* From now on SIGTERM and SIGINT end nobody, but can be waited for. Before any thread is started. */
sigset_t await_end(void);

int subscribe_main(int argc, char **argv);
int worker_main(int argc, char **argv);
int echo_main(int argc, char **argv);

#endif
