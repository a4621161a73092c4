/* A stand-in for ROCm's libamd_smi.so, as far as detection calls it.
 *
 * Prototypes, structures and status codes are those of amd_smi/amdsmi.h: of ROCm 7
 * (library 26), or with STUB_AMDSMI=rocm6.2 those of ROCm 6.2 (library 24.6), whose
 * strings are shorter and whose asic info knows no target. The machine it shows: two
 * MI300X on two sockets, and a processor that is no GPU. STUB_AMDSMI also makes it
 * misbehave.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef enum {
    AMDSMI_STATUS_SUCCESS = 0,
    AMDSMI_STATUS_INVAL = 1,
    AMDSMI_STATUS_BUSY = 30,
    AMDSMI_STATUS_DRIVER_NOT_LOADED = 34,
} amdsmi_status_t;

typedef enum {
    AMDSMI_PROCESSOR_TYPE_AMD_GPU = 1,
    AMDSMI_PROCESSOR_TYPE_AMD_CPU = 2,
} processor_type_t;

typedef enum { AMDSMI_MEM_TYPE_VRAM = 0 } amdsmi_memory_type_t;

typedef void *amdsmi_socket_handle;
typedef void *amdsmi_processor_handle;

typedef struct {
    uint32_t major, minor, release;
    const char *build;
} version_26;

typedef struct {
    uint32_t year, major, minor, release;
    const char *build;
} version_24;

typedef union {
    struct {
        uint64_t function_number : 3, device_number : 5, bus_number : 8, domain_number : 48;
    };
    uint64_t as_uint;
} amdsmi_bdf_t;

typedef struct {
    char market_name[256];
    uint32_t vendor_id;
    char vendor_name[256];
    uint32_t subvendor_id;
    uint64_t device_id;
    uint32_t rev_id;
    char asic_serial[256];
    uint32_t oam_id, num_of_compute_units;
    uint64_t target_graphics_version;
    uint32_t subsystem_id;
    uint32_t reserved[21];
} asic_info_26;

typedef struct {
    char market_name[256];
    uint32_t vendor_id;
    char vendor_name[64];
    uint32_t subvendor_id;
    uint64_t device_id;
    uint32_t rev_id;
    char asic_serial[32];
    uint32_t oam_id;
    uint32_t reserved[18];
} asic_info_24;

typedef struct {
    char driver_version[256], driver_date[256], driver_name[256];
} driver_info_26;

typedef struct {
    char driver_version[64], driver_date[64], driver_name[64];
} driver_info_24;

#define GPUS 2
static char sockets[GPUS], gpus[GPUS], cpu; /* handles are the addresses of these */

static int mode_is(const char *mode) {
    const char *set = getenv("STUB_AMDSMI");
    return set && strcmp(set, mode) == 0;
}

static int index_of(amdsmi_processor_handle handle) { return (int)((char *)handle - gpus); }

amdsmi_status_t amdsmi_init(uint64_t flags) {
    if (mode_is("no driver")) return AMDSMI_STATUS_DRIVER_NOT_LOADED;
    return flags == 2 ? AMDSMI_STATUS_SUCCESS : AMDSMI_STATUS_INVAL; /* AMD GPUs alone */
}

amdsmi_status_t amdsmi_get_lib_version(void *version) {
    if (mode_is("rocm6.2"))
        *(version_24 *)version = (version_24){24, 6, 3, 0, "24.6.3.0"};
    else if (mode_is("rocm6.0"))
        *(version_24 *)version = (version_24){23, 4, 0, 0, "23.4.0.0"};
    else
        *(version_26 *)version = (version_26){26, 0, 2, "26.0.2"};
    return AMDSMI_STATUS_SUCCESS;
}

amdsmi_status_t amdsmi_get_socket_handles(uint32_t *count, amdsmi_socket_handle *handles) {
    for (uint32_t i = 0; handles && i < *count && i < GPUS; i++) handles[i] = &sockets[i];
    *count = GPUS;
    return AMDSMI_STATUS_SUCCESS;
}

amdsmi_status_t amdsmi_get_processor_handles(amdsmi_socket_handle socket, uint32_t *count,
                                             amdsmi_processor_handle *handles) {
    if (handles && *count > 0) handles[0] = &gpus[(char *)socket - sockets];
    if (handles && *count > 1) handles[1] = &cpu;
    *count = 2;
    return AMDSMI_STATUS_SUCCESS;
}

amdsmi_status_t amdsmi_get_processor_type(amdsmi_processor_handle handle,
                                          processor_type_t *type) {
    *type = handle == &cpu ? AMDSMI_PROCESSOR_TYPE_AMD_CPU : AMDSMI_PROCESSOR_TYPE_AMD_GPU;
    return AMDSMI_STATUS_SUCCESS;
}

amdsmi_status_t amdsmi_get_gpu_device_bdf(amdsmi_processor_handle handle, amdsmi_bdf_t *bdf) {
    if (mode_is("busy card") && index_of(handle) == 0) return AMDSMI_STATUS_BUSY;
    bdf->as_uint = 0;
    bdf->domain_number = 1;
    bdf->bus_number = 0xc0 + index_of(handle);
    bdf->device_number = 2;
    return AMDSMI_STATUS_SUCCESS;
}

amdsmi_status_t amdsmi_get_gpu_memory_total(amdsmi_processor_handle handle,
                                            amdsmi_memory_type_t type, uint64_t *total) {
    (void)handle;
    if (type != AMDSMI_MEM_TYPE_VRAM) return AMDSMI_STATUS_INVAL;
    *total = 206141652992;
    return AMDSMI_STATUS_SUCCESS;
}

amdsmi_status_t amdsmi_get_gpu_memory_usage(amdsmi_processor_handle handle,
                                            amdsmi_memory_type_t type, uint64_t *used) {
    if (type != AMDSMI_MEM_TYPE_VRAM) return AMDSMI_STATUS_INVAL;
    *used = 141652992ull + 1000000000ull * index_of(handle);
    return AMDSMI_STATUS_SUCCESS;
}

amdsmi_status_t amdsmi_get_gpu_asic_info(amdsmi_processor_handle handle, void *info) {
    (void)handle;
    if (mode_is("rocm6.2")) {
        asic_info_24 *asic = info;
        memset(asic, 0xff, sizeof *asic); /* what is not set is not zero */
        strcpy(asic->market_name, "AMD Instinct MI300X");
    } else {
        asic_info_26 *asic = info;
        memset(asic, 0xff, sizeof *asic);
        strcpy(asic->market_name, "AMD Instinct MI300X");
        asic->target_graphics_version = 0x942;
    }
    return AMDSMI_STATUS_SUCCESS;
}

amdsmi_status_t amdsmi_get_gpu_driver_info(amdsmi_processor_handle handle, void *info) {
    (void)handle;
    if (mode_is("rocm6.2"))
        *(driver_info_24 *)info = (driver_info_24){"6.8.5", "2015/01/01", "amdgpu"};
    else
        *(driver_info_26 *)info = (driver_info_26){"6.14.14", "2015/01/01", "amdgpu"};
    return AMDSMI_STATUS_SUCCESS;
}

amdsmi_status_t amdsmi_get_gpu_device_uuid(amdsmi_processor_handle handle,
                                           unsigned int *length, char *uuid) {
    const char *found[] = {"62ff74a1-0000-1000-807d-1a2b3c4d5e6f",
                           "55ff74a1-0000-1000-807d-1a2b3c4d5e70"};
    if (*length < 38) return AMDSMI_STATUS_INVAL; /* AMDSMI_GPU_UUID_SIZE */
    strcpy(uuid, found[index_of(handle)]);
    *length = 38;
    return AMDSMI_STATUS_SUCCESS;
}
