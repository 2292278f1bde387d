/* c-client ENDPOINTS COUNT [route]: sends COUNT commands with the C client, and tells how long the middle one took. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "cairn/v1/command.pb-c.h"
#include "client.h"

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void send_one(struct cairn_client *client, unsigned number)
{
    Cairn__V1__DispatchRequest request = CAIRN__V1__DISPATCH_REQUEST__INIT;
    Cairn__V1__Command command = CAIRN__V1__COMMAND__INIT;
    char aggregate[32], id[64];
    uint8_t packed[512];
    struct cairn_error error;

    snprintf(aggregate, sizeof aggregate, "c-%u", number);
    snprintf(id, sizeof id, "%llx-%u", (unsigned long long)random_u64(), number);
    command.command_id = id;
    command.aggregate_type = "echo";
    command.aggregate_id = aggregate;
    command.type = "Put";
    command.payload_case = CAIRN__V1__COMMAND__PAYLOAD_JSON;
    command.json = "1";
    request.command = &command;
    if (cairn_client_call(client, aggregate, "/cairn.v1.CommandService/Dispatch", packed,
                          cairn__v1__dispatch_request__pack(&request, packed), 20000, NULL, NULL, &error) != 0) {
        fprintf(stderr, "%d %s %s\n", error.code, error.reason, error.message);
        exit(1);
    }
}

int main(int count, char **arguments)
{
    unsigned n = count > 2 ? (unsigned)atoi(arguments[2]) : 0;
    struct cairn_client *client = count > 2 ? cairn_client_new(arguments[1], NULL) : NULL;
    struct timespec moment = {0, 10000000};
    uint64_t *times;

    if (client == NULL || n == 0)
        return 2;
    if (count > 3)
        cairn_client_route(client);
    while (count > 3 && !cairn_client_is_routing(client))
        nanosleep(&moment, NULL);
    times = memory_zero(n, sizeof *times);
    for (unsigned i = 0; i < n; i++) {
        uint64_t began = clock_monotonic_us();

        send_one(client, i);
        times[i] = clock_monotonic_us() - began;
    }
    qsort(times, n, sizeof *times, by_size);
    printf("%llu\n", (unsigned long long)times[n / 2]);
    free(times);
    cairn_client_free(client);
    return 0;
}
