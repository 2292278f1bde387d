/*
 * TLS for both sides: certificates and keys in files that are looked at every second, so that a new one is used by
 * the next handshake and nobody's connection ends. What is shown in a handshake is given to whoever decides; here
 * nobody is trusted for more than a chain that ends in the bundle.
 */
#include "internal.h"

#include <grpc/support/string_util.h>

enum { LOOK_EVERY_S = 1 };

struct rpc_tls {
    grpc_tls_certificate_provider *provider;
    bool own_certificate;
    bool demand;
    bool (*accept)(void *context, struct bytes certificate, struct bytes chain, char *why, size_t room);
    void *context;
    grpc_tls_certificate_verifier_external verifier;
    char *authorization; /* the metadata; NULL */
};

static int verify(void *user, grpc_tls_custom_verification_check_request *request,
                  grpc_tls_on_custom_verification_check_done_cb callback, void *callback_context,
                  grpc_status_code *status, char **details)
{
    struct rpc_tls *tls = user;
    char why[300] = "";

    (void)callback;
    (void)callback_context;
    *status = GRPC_STATUS_OK;
    if (!tls->accept(tls->context, bytes_of(request->peer_info.peer_cert),
                     bytes_of(request->peer_info.peer_cert_full_chain), why, sizeof why)) {
        *status = GRPC_STATUS_UNAUTHENTICATED;
        *details = gpr_strdup(why);
    }
    return 1; /* decided at once */
}

static void cancel(void *user, grpc_tls_custom_verification_check_request *request)
{
    (void)user;
    (void)request;
}

static void destruct(void *user)
{
    (void)user; /* it is part of the rpc_tls */
}

struct rpc_tls *rpc_tls_new(const struct rpc_tls_settings *settings)
{
    struct rpc_tls *tls = memory_zero(1, sizeof *tls);

    tls->own_certificate = settings->certificate != NULL;
    tls->demand = settings->demand;
    tls->accept = settings->accept;
    tls->context = settings->context;
    tls->verifier = (grpc_tls_certificate_verifier_external){tls, verify, cancel, destruct};
    tls->provider = grpc_tls_certificate_provider_file_watcher_create(settings->key, settings->certificate,
                                                                      settings->roots, LOOK_EVERY_S);
    if (settings->token != NULL) {
        size_t room = strlen(settings->token) + sizeof "Bearer ";

        tls->authorization = memory_take(room);
        snprintf(tls->authorization, room, "Bearer %s", settings->token);
    }
    return tls;
}

void rpc_tls_free(struct rpc_tls *tls)
{
    if (tls == NULL)
        return;
    grpc_tls_certificate_provider_release(tls->provider);
    free(tls->authorization);
    free(tls);
}

static grpc_tls_credentials_options *options_of(const struct rpc_tls *tls)
{
    grpc_tls_credentials_options *options = grpc_tls_credentials_options_create();

    grpc_tls_credentials_options_set_certificate_provider(options, tls->provider);
    grpc_tls_credentials_options_watch_root_certs(options);
    if (tls->own_certificate)
        grpc_tls_credentials_options_watch_identity_key_cert_pairs(options);
    return options;
}

grpc_server_credentials *rpc_tls_server(const struct rpc_tls *tls)
{
    grpc_tls_credentials_options *options;

    if (tls == NULL)
        return grpc_insecure_server_credentials_create();
    options = options_of(tls);
    grpc_tls_credentials_options_set_cert_request_type(
        options, tls->demand ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                             : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
    return grpc_tls_server_credentials_create(options);
}

grpc_channel_credentials *rpc_tls_channel(const struct rpc_tls *tls)
{
    grpc_tls_credentials_options *options;

    if (tls == NULL)
        return grpc_insecure_credentials_create();
    options = options_of(tls);
    if (tls->accept != NULL) {
        grpc_tls_certificate_verifier *verifier =
            grpc_tls_certificate_verifier_external_create((grpc_tls_certificate_verifier_external *)&tls->verifier);

        grpc_tls_credentials_options_set_certificate_verifier(options, verifier);
        grpc_tls_certificate_verifier_release(verifier);
        grpc_tls_credentials_options_set_check_call_host(options, 0);
    }
    return grpc_tls_credentials_create(options);
}

const char *rpc_tls_authorization(const struct rpc_tls *tls)
{
    return tls == NULL ? NULL : tls->authorization;
}

/* ---- what was shown ---- */

static struct bytes property(const grpc_auth_context *context, const char *name)
{
    grpc_auth_property_iterator at = grpc_auth_context_find_properties_by_name(context, name);
    const grpc_auth_property *found = grpc_auth_property_iterator_next(&at);

    return found == NULL ? BYTES_NONE : (struct bytes){(const uint8_t *)found->value, found->value_length};
}

static struct bytes bearer(const grpc_metadata_array *metadata)
{
    for (size_t i = 0; i < metadata->count; i++) {
        const grpc_slice *value = &metadata->metadata[i].value;

        if (grpc_slice_str_cmp(metadata->metadata[i].key, "authorization") == 0 && GRPC_SLICE_LENGTH(*value) > 7 &&
            strncasecmp((const char *)GRPC_SLICE_START_PTR(*value), "bearer ", 7) == 0)
            return (struct bytes){GRPC_SLICE_START_PTR(*value) + 7, GRPC_SLICE_LENGTH(*value) - 7};
    }
    return BYTES_NONE;
}

grpc_auth_context *rpc_tls_shown(grpc_call *call, const grpc_metadata_array *metadata, struct rpc_shown *out)
{
    grpc_auth_context *context = grpc_call_auth_context(call);

    *out = (struct rpc_shown){.token = bearer(metadata)};
    if (context != NULL) {
        out->certificate = property(context, GRPC_X509_PEM_CERT_PROPERTY_NAME);
        out->chain = property(context, GRPC_X509_PEM_CERT_CHAIN_PROPERTY_NAME);
    }
    return context;
}
