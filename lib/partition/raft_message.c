/* Field by field; see peer.proto for what each means in which type. */
#include "raft_message.h"

void replica_address(char *out, size_t room, uint64_t node_id)
{
    assert(room > 16);
    out[put_hex(out, node_id, 16)] = '\0';
}

void replica_message_from_raft(struct replica_message *out, const struct raft_message *in,
                               uint16_t partition)
{
    *out = (struct replica_message){.partition = partition,
                                    .type = (enum replica_message_type)in->type};
    switch (in->type) {
    case RAFT_APPEND_ENTRIES:
        out->version = in->append_entries.version;
        out->term = in->append_entries.term;
        out->log_index = in->append_entries.prev_log_index;
        out->log_term = in->append_entries.prev_log_term;
        out->leader_commit = in->append_entries.leader_commit;
        break;
    case RAFT_APPEND_ENTRIES_RESULT:
        out->version = in->append_entries_result.version;
        out->term = in->append_entries_result.term;
        out->rejected = in->append_entries_result.rejected;
        out->log_index = in->append_entries_result.last_log_index;
        out->features = in->append_entries_result.features;
        out->capacity = in->append_entries_result.capacity;
        break;
    case RAFT_REQUEST_VOTE:
        out->version = in->request_vote.version;
        out->term = in->request_vote.term;
        out->log_index = in->request_vote.last_log_index;
        out->log_term = in->request_vote.last_log_term;
        out->flag = in->request_vote.disrupt_leader;
        out->pre_vote = in->request_vote.pre_vote;
        break;
    case RAFT_REQUEST_VOTE_RESULT:
        out->version = in->request_vote_result.version;
        out->term = in->request_vote_result.term;
        out->flag = in->request_vote_result.vote_granted;
        out->pre_vote = in->request_vote_result.pre_vote;
        out->features = in->request_vote_result.features;
        out->capacity = in->request_vote_result.capacity;
        break;
    case RAFT_INSTALL_SNAPSHOT:
        out->version = in->install_snapshot.version;
        out->term = in->install_snapshot.term;
        out->log_index = in->install_snapshot.last_index;
        out->log_term = in->install_snapshot.last_term;
        out->configuration_index = in->install_snapshot.conf_index;
        break;
    case RAFT_TIMEOUT_NOW:
        out->version = in->timeout_now.version;
        out->term = in->timeout_now.term;
        out->log_index = in->timeout_now.last_log_index;
        out->log_term = in->timeout_now.last_log_term;
        break;
    }
}

static bool configuration_is_sound(struct bytes packed)
{
    struct raft_buffer buffer = {(void *)packed.data, packed.len};
    struct raft_configuration configuration;
    bool sound;

    raft_configuration_init(&configuration);
    sound = packed.len > 0 && raft_configuration_decode(&buffer, &configuration) == 0;
    raft_configuration_close(&configuration);
    return sound;
}

static enum status entries_to_raft(struct raft_entry *out, const struct replica_message *in)
{
    size_t total = 0;
    struct blob *blob;
    uint8_t *at;

    for (size_t i = 0; i < in->entry_count; i++) {
        const struct log_entry *entry = &in->entries[i];

        if (entry->term == 0 || entry->term > in->term || entry->type < RAFT_COMMAND ||
            entry->type > RAFT_CHANGE)
            return STATUS_INVALID;
        if (entry->type == RAFT_CHANGE && !configuration_is_sound(entry->payload))
            return STATUS_INVALID;
        total += (entry->payload.len + 7) & ~(size_t)7;
    }
    if (in->entry_count == 0)
        return STATUS_OK;
    blob = blob_new(total);
    at = blob->data;
    for (size_t i = 0; i < in->entry_count; i++) {
        const struct log_entry *entry = &in->entries[i];

        if (entry->payload.len > 0)
            memcpy(at, entry->payload.data, entry->payload.len);
        out[i] = (struct raft_entry){.term = entry->term,
                                     .type = (enum raft_entry_type)entry->type,
                                     .buf = {at, entry->payload.len},
                                     .batch = blob};
        at += (entry->payload.len + 7) & ~(size_t)7;
    }
    return STATUS_OK;
}

enum status replica_message_to_raft(struct raft_message *out, struct raft_entry *entries,
                                    const struct replica_message *in, uint64_t from, char *address,
                                    size_t address_room)
{
    replica_address(address, address_room, from);
    *out = (struct raft_message){.type = (enum raft_message_type)in->type,
                                 .server_id = from,
                                 .server_address = address};
    if (in->term == 0)
        return STATUS_INVALID;
    switch (out->type) {
    case RAFT_APPEND_ENTRIES:
        if ((in->log_index == 0) != (in->log_term == 0) || in->log_term > in->term)
            return STATUS_INVALID;
        out->append_entries = (struct raft_append_entries){
            .version = (unsigned char)in->version,
            .term = in->term,
            .prev_log_index = in->log_index,
            .prev_log_term = in->log_term,
            .leader_commit = in->leader_commit,
            .entries = entries,
            .n_entries = (unsigned)in->entry_count,
        };
        return entries_to_raft(entries, in);
    case RAFT_APPEND_ENTRIES_RESULT:
        out->append_entries_result = (struct raft_append_entries_result){
            .version = (unsigned char)in->version,
            .term = in->term,
            .rejected = in->rejected,
            .last_log_index = in->log_index,
            .features = (unsigned short)in->features,
            .capacity = (unsigned short)in->capacity,
        };
        return STATUS_OK;
    case RAFT_REQUEST_VOTE:
        out->request_vote = (struct raft_request_vote){
            .version = (unsigned char)in->version,
            .term = in->term,
            .candidate_id = from,
            .last_log_index = in->log_index,
            .last_log_term = in->log_term,
            .disrupt_leader = in->flag,
            .pre_vote = in->pre_vote,
        };
        return STATUS_OK;
    case RAFT_REQUEST_VOTE_RESULT:
        out->request_vote_result = (struct raft_request_vote_result){
            .version = (unsigned char)in->version,
            .term = in->term,
            .vote_granted = in->flag,
            .pre_vote = in->pre_vote,
            .features = (unsigned short)in->features,
            .capacity = (unsigned short)in->capacity,
        };
        return STATUS_OK;
    case RAFT_INSTALL_SNAPSHOT: {
        struct raft_buffer packed = {(void *)in->configuration.data, in->configuration.len};

        if (in->log_index == 0 || in->log_term == 0 || in->log_term > in->term ||
            !configuration_is_sound(in->configuration))
            return STATUS_INVALID;
        out->install_snapshot = (struct raft_install_snapshot){
            .version = (unsigned char)in->version,
            .term = in->term,
            .last_index = in->log_index,
            .last_term = in->log_term,
            .conf_index = in->configuration_index,
        };
        raft_configuration_init(&out->install_snapshot.conf);
        return raft_configuration_decode(&packed, &out->install_snapshot.conf) == 0
                   ? STATUS_OK
                   : STATUS_INVALID;
    }
    case RAFT_TIMEOUT_NOW:
        out->timeout_now = (struct raft_timeout_now){
            .version = (unsigned char)in->version,
            .term = in->term,
            .last_log_index = in->log_index,
            .last_log_term = in->log_term,
        };
        return STATUS_OK;
    }
    return STATUS_INVALID;
}
