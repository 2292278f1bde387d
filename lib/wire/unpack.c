/*
 * Unpacking into an arena. protobuf-c checks neither UTF-8 nor NUL inside strings (its C strings
 * would hide what follows a NUL), so the raw bytes are walked along the descriptor first.
 */
#include "unpack.h"

static void *allocate(void *context, size_t size)
{
    return arena_take(context, size);
}

static void release(void *context, void *pointer)
{
    (void)context;
    (void)pointer;
}

bool take_varint(struct bytes *in, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        uint8_t byte;

        if (in->len == 0)
            return false;
        byte = *in->data++;
        in->len--;
        *value |= (uint64_t)(byte & 0x7F) << shift;
        if ((byte & 0x80) == 0)
            return true;
    }
    return false;
}

static bool skip(struct bytes *in, size_t len)
{
    if (in->len < len)
        return false;
    in->data += len;
    in->len -= len;
    return true;
}

enum { NESTING_MAX = 16 };

/* Walk the fields; false when malformed, or when *dirty names an unclean string. */
static bool strings_are_clean(const ProtobufCMessageDescriptor *descriptor, struct bytes in,
                              int depth, const char **dirty)
{
    if (depth > NESTING_MAX)
        return false;
    while (in.len > 0) {
        uint64_t tag;
        uint64_t len;
        const ProtobufCFieldDescriptor *field;
        struct bytes inner;

        if (!take_varint(&in, &tag) || tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF)
            return false;
        switch (tag & 7) {
        case 0:
            if (!take_varint(&in, &len))
                return false;
            continue;
        case 1:
            if (!skip(&in, 8))
                return false;
            continue;
        case 5:
            if (!skip(&in, 4))
                return false;
            continue;
        case 2:
            break;
        default:
            return false;
        }
        if (!take_varint(&in, &len) || len > in.len)
            return false;
        inner = (struct bytes){in.data, (size_t)len};
        (void)skip(&in, (size_t)len);
        field = protobuf_c_message_descriptor_get_field(descriptor, (unsigned)(tag >> 3));
        if (field == NULL)
            continue;
        if (field->type == PROTOBUF_C_TYPE_STRING && !bytes_is_utf8(inner)) {
            *dirty = field->name;
            return false;
        }
        if (field->type == PROTOBUF_C_TYPE_MESSAGE &&
            !strings_are_clean(field->descriptor, inner, depth + 1, dirty))
            return false;
    }
    return true;
}

void *wire_unpack_trusted(const ProtobufCMessageDescriptor *descriptor, struct bytes packed,
                          struct arena *arena, const char *what, struct fault *fault)
{
    ProtobufCAllocator allocator = {allocate, release, arena};
    void *message = protobuf_c_message_unpack(descriptor, &allocator, packed.len, packed.data);

    if (message == NULL)
        (void)fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                        "%s of %zu bytes is not a well-formed %s", what, packed.len,
                        descriptor->name);
    return message;
}

void *wire_unpack(const ProtobufCMessageDescriptor *descriptor, struct bytes packed,
                  struct arena *arena, const char *what, struct fault *fault)
{
    const char *dirty = NULL;

    if (!strings_are_clean(descriptor, packed, 0, &dirty)) {
        if (dirty != NULL)
            (void)fault_set(fault, STATUS_INVALID, "MALFORMED_TEXT",
                            "field %s of %s holds a NUL or is not UTF-8", dirty,
                            descriptor->name);
        else
            (void)fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                            "%s of %zu bytes is not a well-formed %s", what, packed.len,
                            descriptor->name);
        return NULL;
    }
    return wire_unpack_trusted(descriptor, packed, arena, what, fault);
}

void put_varint(struct buffer *out, uint64_t value)
{
    uint8_t raw[10];
    size_t n = 0;

    while (value >= 0x80) {
        raw[n++] = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    raw[n++] = (uint8_t)value;
    buffer_add(out, raw, n);
}

static void put_tag(struct buffer *out, unsigned field, unsigned type)
{
    put_varint(out, (uint64_t)field << 3 | type);
}

void put_u64(struct buffer *out, unsigned field, uint64_t value)
{
    if (value == 0)
        return;
    put_tag(out, field, 0);
    put_varint(out, value);
}

void put_fixed64(struct buffer *out, unsigned field, uint64_t value)
{
    uint8_t raw[8];

    if (value == 0)
        return;
    put_tag(out, field, 1);
    for (int i = 0; i < 8; i++)
        raw[i] = (uint8_t)(value >> (8 * i));
    buffer_add(out, raw, sizeof raw);
}

void put_bytes_always(struct buffer *out, unsigned field, struct bytes value)
{
    put_tag(out, field, 2);
    put_varint(out, value.len);
    buffer_add(out, value.data, value.len);
}

void put_bytes(struct buffer *out, unsigned field, struct bytes value)
{
    if (value.len > 0)
        put_bytes_always(out, field, value);
}

size_t put_begin(struct buffer *out, unsigned field)
{
    put_tag(out, field, 2);
    (void)buffer_extend(out, 1); /* the length, if it turns out short */
    return out->len;
}

void put_end(struct buffer *out, size_t begun)
{
    size_t len = out->len - begun;
    size_t value = len;
    size_t more = 0;
    uint8_t *at;

    while (value >= 0x80) {
        value >>= 7;
        more++;
    }
    if (more > 0) {
        (void)buffer_extend(out, more);
        memmove(out->data + begun + more, out->data + begun, len);
    }
    at = out->data + begun - 1;
    for (value = len; value >= 0x80; value >>= 7)
        *at++ = (uint8_t)(value | 0x80);
    *at = (uint8_t)value;
}

void put_time(struct buffer *out, unsigned field, int64_t ms)
{
    size_t begun = put_begin(out, field);

    put_u64(out, 1, (uint64_t)(ms / 1000));
    put_u64(out, 2, (uint64_t)(ms % 1000) * 1000000);
    put_end(out, begun);
}

void put_payload(struct buffer *out, unsigned json_field, unsigned data_field,
                 const struct payload *payload)
{
    if (payload->kind == PAYLOAD_JSON)
        put_bytes_always(out, json_field, payload->content);
    else if (payload->kind == PAYLOAD_DATA)
        put_bytes_always(out, data_field, payload->content);
}

void put_metadata(struct buffer *out, unsigned field, const struct metadata *metadata)
{
    for (size_t i = 0; i < metadata->count; i++) {
        size_t entry = put_begin(out, field);

        put_bytes(out, 1, metadata->entries[i].key);
        put_bytes(out, 2, metadata->entries[i].value);
        put_end(out, entry);
    }
}

void put_reply(struct buffer *out, unsigned field, const struct reply *reply)
{
    size_t begun;

    if (!reply->present)
        return;
    begun = put_begin(out, field);
    put_bytes(out, 1, reply->type);
    put_payload(out, 2, 3, &reply->payload);
    put_fixed64(out, 4, reply->sealed_by);
    put_bytes(out, 5, reply->subject);
    put_u64(out, 6, reply->forgotten);
    put_end(out, begun);
}
