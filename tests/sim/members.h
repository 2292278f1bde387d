/* Membership at scale, as a table for README.md. */
#ifndef CAIRN_SIM_MEMBERS_H
#define CAIRN_SIM_MEMBERS_H

#include "sim.h"

void members_table(uint64_t seed);

#endif
