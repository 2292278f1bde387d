/* Shared objects with aggregate types. */
#include <dlfcn.h>

#include "node.h"

enum { MODULE_PROCESSORS_MAX = 64 };

struct modules {
    void *handles[MODULES_MAX];
    const struct cairn_module *modules[MODULES_MAX];
    size_t count;
    struct {
        struct bytes name;
        const struct cairn_aggregate_type *type;
    } types[HANDLER_TYPES_MAX];
    size_t type_count;
    const struct cairn_processor *processors[MODULE_PROCESSORS_MAX];
    size_t processor_count;
};

static enum status add_type(struct modules *all, const char *path,
                            const struct cairn_aggregate_type *type, struct fault *fault)
{
    if (type->name == NULL || type->commands == NULL || type->create == NULL ||
        type->destroy == NULL || type->decide == NULL || type->evolve == NULL)
        return fault_set(fault, STATUS_INVALID, "MODULE_INVALID",
                         "module %s: aggregate type %s lacks a required function", path,
                         type->name == NULL ? "(unnamed)" : type->name);
    if (modules_type(all, bytes_of(type->name)) != NULL)
        return fault_set(fault, STATUS_INVALID, "MODULE_INVALID",
                         "module %s: aggregate type %s is defined by another module already",
                         path, type->name);
    if (all->type_count == HANDLER_TYPES_MAX)
        return fault_set(fault, STATUS_INVALID, "MODULE_INVALID",
                         "module %s: more than %d aggregate types", path, HANDLER_TYPES_MAX);
    all->types[all->type_count].name = bytes_of(type->name);
    all->types[all->type_count++].type = type;
    return STATUS_OK;
}

static enum status add_processor(struct modules *all, const char *path, const struct cairn_processor *p,
                                 struct fault *fault)
{
    if (p->name == NULL || p->name[0] == '\0' || strlen(p->name) > NAME_BYTES_MAX || p->process == NULL)
        return fault_set(fault, STATUS_INVALID, "MODULE_INVALID",
                         "module %s: a processor needs a name of 1 to %d bytes and process()", path, NAME_BYTES_MAX);
    for (size_t i = 0; i < all->processor_count; i++)
        if (strcmp(all->processors[i]->name, p->name) == 0)
            return fault_set(fault, STATUS_INVALID, "MODULE_INVALID",
                             "module %s: processor %s is defined by another module already", path, p->name);
    if (all->processor_count == MODULE_PROCESSORS_MAX)
        return fault_set(fault, STATUS_INVALID, "MODULE_INVALID", "module %s: more than %d processors", path,
                         MODULE_PROCESSORS_MAX);
    all->processors[all->processor_count++] = p;
    return STATUS_OK;
}

static enum status load(struct modules *all, const char *path, struct fault *fault)
{
    const struct cairn_module *(*entry)(void);
    const struct cairn_module *module;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    enum status status = STATUS_OK;

    if (handle == NULL)
        return fault_set(fault, STATUS_INVALID, "MODULE_INVALID", "cannot load module %s: %s",
                         path, dlerror());
    all->handles[all->count] = handle;
    *(void **)&entry = dlsym(handle, "cairn_module");
    all->modules[all->count++] = module = entry == NULL ? NULL : entry();
    if (module == NULL)
        return fault_set(fault, STATUS_INVALID, "MODULE_INVALID",
                         "cannot load module %s: it defines no cairn_module()", path);
    if (module->version != CAIRN_MODULE_VERSION)
        return fault_set(fault, STATUS_INVALID, "MODULE_INVALID",
                         "cannot load module %s: it was built for version %u of the interface, "
                         "this node has %u; build it anew",
                         path, module->version, CAIRN_MODULE_VERSION);
    for (const struct cairn_aggregate_type *const *type = module->types;
         type != NULL && *type != NULL && status == STATUS_OK; type++)
        status = add_type(all, path, *type, fault);
    for (const struct cairn_processor *const *p = module->processors;
         p != NULL && *p != NULL && status == STATUS_OK; p++)
        status = add_processor(all, path, *p, fault);
    return status;
}

enum status modules_load(struct modules **out, const struct config *config, struct fault *fault)
{
    struct modules *all = memory_zero(1, sizeof *all);
    enum status status = STATUS_OK;

    for (size_t i = 0; i < config->module_count && status == STATUS_OK; i++)
        status = load(all, config->modules[i], fault);
    if (status != STATUS_OK) {
        modules_free(all);
        return status;
    }
    *out = all;
    return STATUS_OK;
}

void modules_free(struct modules *all)
{
    if (all == NULL)
        return;
    for (size_t i = 0; i < all->count; i++)
        dlclose(all->handles[i]);
    free(all);
}

const struct cairn_aggregate_type *modules_type(const struct modules *all, struct bytes name)
{
    for (size_t i = 0; i < all->type_count; i++)
        if (bytes_equal(all->types[i].name, name))
            return all->types[i].type;
    return NULL;
}

const struct cairn_processor *modules_processor(const struct modules *all, size_t number)
{
    return number < all->processor_count ? all->processors[number] : NULL;
}
