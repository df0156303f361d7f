/* Whether this process may use AMX's tiles. Their registers are so large that Linux wants to be asked, once for all threads of a
 * process, before it saves them. Knows nothing of what the processor has.
 */
#ifndef FASTMIXER_CPU_TILES_H
#define FASTMIXER_CPU_TILES_H

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>

static int system_allows_tiles(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* of arch_prctl */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#else
static int system_allows_tiles(void) { return 0; }
#endif

#endif
