/* Errors, health and reflection. */
#include "google/protobuf/descriptor.pb-c.h"
#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "grpc/health/v1/health.pb-c.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "unpack.h"

void wire_fault_pack(struct buffer *out, const struct fault *fault, int grpc_code)
{
    size_t any;
    size_t inner;

    put_u64(out, 1, (uint64_t)grpc_code);
    put_bytes(out, 2, bytes_of(fault->message));
    any = put_begin(out, 3);
    put_bytes(out, 1, BYTES_LITERAL("type.googleapis.com/google.rpc.ErrorInfo"));
    inner = put_begin(out, 2);
    put_bytes(out, 1, bytes_of(fault->reason));
    put_bytes(out, 2, BYTES_LITERAL("cairn"));
    put_end(out, inner);
    put_end(out, any);
    if (fault->retry_ms > 0) {
        any = put_begin(out, 3);
        put_bytes(out, 1, BYTES_LITERAL("type.googleapis.com/google.rpc.RetryInfo"));
        inner = put_begin(out, 2);
        put_time(out, 1, fault->retry_ms);
        put_end(out, inner);
        put_end(out, any);
    }
}

struct bytes wire_fault_reason(struct bytes packed, struct arena *arena)
{
    struct fault fault;
    Google__Rpc__Status *status = wire_unpack(&google__rpc__status__descriptor, packed, arena, "status", &fault);

    for (size_t i = 0; status != NULL && i < status->n_details; i++) {
        const Google__Protobuf__Any *detail = status->details[i];
        Google__Rpc__ErrorInfo *info = NULL;

        if (strcmp(detail->type_url, "type.googleapis.com/google.rpc.ErrorInfo") == 0)
            info = wire_unpack(&google__rpc__error_info__descriptor, from_data(detail->value), arena, "error", &fault);
        if (info != NULL)
            return from_text(info->reason);
    }
    return BYTES_NONE;
}

enum status wire_health_decode(struct bytes packed, struct arena *arena, struct bytes *service,
                               struct fault *fault)
{
    Grpc__Health__V1__HealthCheckRequest *request = wire_unpack(
        &grpc__health__v1__health_check_request__descriptor, packed, arena, "request", fault);

    if (request == NULL)
        return STATUS_INVALID;
    *service = from_text(request->service);
    return STATUS_OK;
}

void wire_health_pack(struct buffer *out, int serving_status)
{
    put_u64(out, 1, (uint64_t)serving_status);
}

/* ---- reflection ---- */

typedef Google__Protobuf__FileDescriptorProto file_proto;
typedef Google__Protobuf__FileDescriptorSet file_set;

static file_proto *file_named(const file_set *set, const char *name, size_t *at)
{
    for (size_t i = 0; i < set->n_file; i++)
        if (strcmp(set->file[i]->name, name) == 0) {
            *at = i;
            return set->file[i];
        }
    return NULL;
}

/* Does `symbol` name `package.name`, or something inside it? */
static bool names(const char *symbol, const char *package, const char *name)
{
    size_t prefix = strlen(package);
    size_t len = strlen(name);

    if (prefix > 0) {
        if (strncmp(symbol, package, prefix) != 0 || symbol[prefix] != '.')
            return false;
        symbol += prefix + 1;
    }
    return strncmp(symbol, name, len) == 0 && (symbol[len] == '\0' || symbol[len] == '.');
}

static bool file_defines(const file_proto *file, const char *symbol)
{
    const char *package = file->package == NULL ? "" : file->package;

    for (size_t i = 0; i < file->n_message_type; i++)
        if (names(symbol, package, file->message_type[i]->name))
            return true;
    for (size_t i = 0; i < file->n_enum_type; i++)
        if (names(symbol, package, file->enum_type[i]->name))
            return true;
    for (size_t i = 0; i < file->n_service; i++)
        if (names(symbol, package, file->service[i]->name))
            return true;
    return false;
}

/* Add a file and all it imports, each once, dependencies last: clients take any order. */
static void put_file(struct buffer *out, const file_set *set, size_t at, bool *done)
{
    if (done[at])
        return;
    done[at] = true;
    {
        size_t len = google__protobuf__file_descriptor_proto__get_packed_size(set->file[at]);
        uint8_t *packed = memory_take(len);

        google__protobuf__file_descriptor_proto__pack(set->file[at], packed);
        put_bytes_always(out, 1, (struct bytes){packed, len});
        free(packed);
    }
    for (size_t i = 0; i < set->file[at]->n_dependency; i++) {
        size_t next;

        if (file_named(set, set->file[at]->dependency[i], &next) != NULL)
            put_file(out, set, next, done);
    }
}

static void put_services(struct buffer *out, const file_set *set)
{
    size_t list = put_begin(out, 6);

    for (size_t i = 0; i < set->n_file; i++)
        for (size_t j = 0; j < set->file[i]->n_service; j++) {
            char name[256];
            size_t service = put_begin(out, 1);

            snprintf(name, sizeof name, "%s.%s", set->file[i]->package,
                     set->file[i]->service[j]->name);
            put_bytes(out, 1, bytes_of(name));
            put_end(out, service);
        }
    put_end(out, list);
}

static void put_error(struct buffer *out, int code, const char *format, const char *what)
{
    char text[512];
    size_t error = put_begin(out, 7);

    snprintf(text, sizeof text, format, what);
    put_u64(out, 1, (uint64_t)code);
    put_bytes(out, 2, bytes_of(text));
    put_end(out, error);
}

enum { GRPC_NOT_FOUND = 5, GRPC_UNIMPLEMENTED = 12 };

enum status wire_reflection_answer(struct buffer *out, struct bytes request,
                                   struct bytes descriptor_set, struct fault *fault)
{
    struct arena arena = {0};
    Grpc__Reflection__V1__ServerReflectionRequest *in =
        wire_unpack(&grpc__reflection__v1__server_reflection_request__descriptor, request, &arena,
                    "request", fault);
    file_set *set = NULL;
    file_proto *file = NULL;
    size_t at = 0;

    if (in != NULL)
        set = wire_unpack_trusted(&google__protobuf__file_descriptor_set__descriptor,
                                  descriptor_set, &arena, "descriptor set", fault);
    if (set == NULL) {
        arena_release(&arena);
        return STATUS_INVALID;
    }
    put_bytes(out, 1, from_text(in->host));
    put_bytes_always(out, 2, request);
    switch (in->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        put_services(out, set);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        file = file_named(set, in->file_by_filename, &at);
        if (file == NULL)
            put_error(out, GRPC_NOT_FOUND, "no file %s", in->file_by_filename);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        for (at = 0; at < set->n_file && file == NULL; at++)
            if (file_defines(set->file[at], in->file_containing_symbol))
                file = set->file[at];
        if (file == NULL)
            put_error(out, GRPC_NOT_FOUND, "no symbol %s", in->file_containing_symbol);
        else
            at--;
        break;
    default:
        put_error(out, GRPC_UNIMPLEMENTED, "%s", "proto3 has no extensions");
    }
    if (file != NULL) {
        bool *done = arena_take(&arena, set->n_file * sizeof *done);
        size_t response = put_begin(out, 4);

        memset(done, 0, set->n_file * sizeof *done);
        put_file(out, set, at, done);
        put_end(out, response);
    }
    arena_release(&arena);
    return STATUS_OK;
}
