/* Tokens: positions of all partitions as text, tied to their cluster by a check sum. */
#include "event.h"

static uint32_t check_of(struct bytes text, const struct token_of *cluster)
{
    return (uint32_t)hash_mix(hash_bytes(cluster->cluster_id), text);
}

static uint32_t tag_of(const struct token_of *cluster)
{
    return (uint32_t)(hash_bytes(cluster->cluster_id) >> 32);
}

void token_write(struct buffer *out, const struct token_of *cluster, const uint64_t *positions)
{
    size_t begun = out->len;

    buffer_printf(out, "2.%08x.%x.", tag_of(cluster), cluster->partitions);
    for (uint32_t p = 0; p < cluster->partitions; p++)
        buffer_printf(out, p == 0 ? "%llx" : "-%llx", (unsigned long long)positions[p]);
    buffer_printf(out, ".%08x",
                  check_of((struct bytes){out->data + begun, out->len - begun}, cluster));
}

static bool take_hex(struct bytes *in, uint64_t *value)
{
    size_t digits = 0;

    *value = 0;
    for (; in->len > 0 && digits <= 16; digits++) {
        uint8_t c = *in->data;
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 16;

        if (digit == 16)
            break;
        *value = *value << 4 | (uint64_t)digit;
        *in = (struct bytes){in->data + 1, in->len - 1};
    }
    return digits > 0 && digits <= 16;
}

static bool take(struct bytes *in, char c)
{
    if (in->len == 0 || *in->data != (uint8_t)c)
        return false;
    *in = (struct bytes){in->data + 1, in->len - 1};
    return true;
}

static enum status malformed(struct fault *fault)
{
    return fault_set(fault, STATUS_INVALID, "TOKEN_INVALID",
                     "the token is not one that a node gave, or was cut short; begin from another start");
}

static enum status read_command_token(struct bytes in, const struct token_of *cluster, uint64_t *positions,
                                      int64_t *only, struct fault *fault)
{
    uint64_t partition, position;

    if (!take_hex(&in, &partition) || !take(&in, '.') || !take_hex(&in, &position) || in.len > 0)
        return malformed(fault);
    if (partition >= cluster->partitions)
        return fault_set(fault, STATUS_INVALID, "TOKEN_OF_ANOTHER_CLUSTER",
                         "the token names partition %llu, this cluster has %u",
                         (unsigned long long)partition, cluster->partitions);
    memset(positions, 0, cluster->partitions * sizeof *positions);
    positions[partition] = position;
    *only = (int64_t)partition;
    return STATUS_OK;
}

enum status token_read(struct bytes token, const struct token_of *cluster, uint64_t *positions, int64_t *only,
                       struct fault *fault)
{
    struct bytes in = token;
    struct bytes covered;
    uint64_t tag, count, check;

    *only = -1;
    if (take(&in, '1') && take(&in, '.'))
        return read_command_token(in, cluster, positions, only, fault);
    in = token;
    if (take_hex(&in, &tag) && tag > 2 && take(&in, '.'))
        return fault_set(fault, STATUS_INVALID, "TOKEN_VERSION",
                         "the token has version %llu; this node reads 1 and 2", (unsigned long long)tag);
    in = token;
    if (!take(&in, '2') || !take(&in, '.') || !take_hex(&in, &tag) || !take(&in, '.') ||
        !take_hex(&in, &count) || !take(&in, '.'))
        return malformed(fault);
    if (tag != tag_of(cluster) || count != cluster->partitions)
        return fault_set(fault, STATUS_INVALID, "TOKEN_OF_ANOTHER_CLUSTER",
                         "the token was given by another cluster; begin from another start");
    for (uint32_t p = 0; p < cluster->partitions; p++)
        if ((p > 0 && !take(&in, '-')) || !take_hex(&in, &positions[p]))
            return malformed(fault);
    covered = (struct bytes){token.data, token.len - in.len};
    if (!take(&in, '.') || !take_hex(&in, &check) || in.len > 0 || check != check_of(covered, cluster))
        return malformed(fault);
    return STATUS_OK;
}
