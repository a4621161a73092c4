/* A stand-in for NVIDIA's libnvidia-ml.so.1, as far as detection calls it.
 *
 * Prototypes, structures and return codes are those of nvml.h (CUDA 12 and 13).
 * The machine it shows: an H100, and an A100 in MIG mode with instances in the places
 * 0 and 3. STUB_NVML makes it misbehave; STUB_NVML_FREE names a file with the number
 * of bytes that are free on the H100 now.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
} nvmlReturn_t;

typedef struct nvmlDevice_st {
    const char *name, *uuid, *bus_id;
    unsigned long long total, free;
    int major, minor;
    int place; /* of a MIG instance; -1 for a card */
    struct nvmlDevice_st *instances; /* of a card in MIG mode, three empty names after */
} *nvmlDevice_t;

typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

#define GB 1000000000ull
#define MIG_PLACES 7

static struct nvmlDevice_st instances[] = {
    {"NVIDIA A100-SXM4-40GB MIG 1g.5gb", "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "",
     5 * GB, 4 * GB, 8, 0, 0, NULL},
    {"NVIDIA A100-SXM4-40GB MIG 3g.20gb", "MIG-0c757cd7-e942-5726-a0b8-0e8fb7067135", "",
     21 * GB, 20 * GB, 8, 0, 3, NULL},
    {NULL},
};
static struct nvmlDevice_st cards[] = {
    {"NVIDIA H100 80GB HBM3", "GPU-63feeb45-94c6-b9cb-78ea-98e9b7a5be6b",
     "00000000:1B:00.0", 85 * GB, 80 * GB, 9, 0, -1, NULL},
    {"NVIDIA A100-SXM4-40GB", "GPU-4f0fe7a0-6e1a-4a7b-9a0e-0b5f9a1c2d3e",
     "00000000:43:00.0", 42 * GB, 41 * GB, 8, 0, -1, instances},
};

static int mode_is(const char *mode) {
    const char *set = getenv("STUB_NVML");
    return set && strcmp(set, mode) == 0;
}

static nvmlReturn_t copy(char *to, unsigned int length, const char *text) {
    if (strlen(text) >= length) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(to, text);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    if (mode_is("no driver")) return NVML_ERROR_DRIVER_NOT_LOADED;
    if (mode_is("mismatch")) return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    if (mode_is("no permission")) return NVML_ERROR_NO_PERMISSION;
    if (mode_is("crash")) abort();
    if (mode_is("chatty")) puts("NVML says something on stdout that is not JSON"), fflush(stdout);
    while (mode_is("hang")) pause();
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlShutdown(void) { return NVML_SUCCESS; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    return copy(version, length, "550.54.15");
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 12040;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = mode_is("no card") ? 0 : sizeof cards / sizeof *cards;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (index >= sizeof cards / sizeof *cards) return NVML_ERROR_INVALID_ARGUMENT;
    if (index == 0 && mode_is("lost card")) return NVML_ERROR_GPU_IS_LOST;
    *device = &cards[index];
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    return copy(name, length, device->name);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    return copy(uuid, length, device->uuid);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    memset(pci, 0, sizeof *pci);
    return copy(pci->busId, sizeof pci->busId, device->bus_id);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    const char *path = getenv("STUB_NVML_FREE");
    FILE *file = path && device == &cards[0] ? fopen(path, "r") : NULL;
    if (mode_is("shared memory")) return NVML_ERROR_NOT_SUPPORTED;
    memory->total = device->total;
    memory->free = device->free;
    if (file) {
        if (fscanf(file, "%llu", &memory->free) != 1) abort();
        fclose(file);
    }
    memory->used = memory->total - memory->free;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    if (device->place >= 0) return NVML_ERROR_NOT_SUPPORTED;
    *major = device->major;
    *minor = device->minor;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *now, unsigned int *next) {
    if (device->place >= 0) return NVML_ERROR_NOT_SUPPORTED;
    *now = *next = device->instances != NULL;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) {
    *count = device->instances ? MIG_PLACES : 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index,
                                                 nvmlDevice_t *instance) {
    if (!device->instances || index >= MIG_PLACES) return NVML_ERROR_INVALID_ARGUMENT;
    if (mode_is("no instance")) return NVML_ERROR_NOT_FOUND;
    for (nvmlDevice_t i = device->instances; i->name; i++)
        if (i->place == (int)index) return *instance = i, NVML_SUCCESS;
    return NVML_ERROR_NOT_FOUND;
}
