/* libraft's messages to and from ours. */
#ifndef CAIRN_PARTITION_RAFT_MESSAGE_H
#define CAIRN_PARTITION_RAFT_MESSAGE_H

#include <raft.h>

#include "wire/wire.h"

/* Without entries and configuration, which the caller adds. */
void replica_message_from_raft(struct replica_message *out, const struct raft_message *in,
                               uint16_t partition);
/*
 * With entries in one blob, which libraft or the caller will drop, in the way that raft_step
 * wants them; `entries` must hold in->entry_count. INVALID when a field makes no sense: libraft
 * asserts what peers could otherwise break.
 */
MUST_USE enum status replica_message_to_raft(struct raft_message *out, struct raft_entry *entries,
                                             const struct replica_message *in, uint64_t from,
                                             char *address, size_t address_room);
/* A server's address inside libraft: its id in hexadecimal. */
void replica_address(char *out, size_t room, uint64_t node_id);

#endif
