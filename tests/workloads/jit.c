/* Makes code and tells of it as compilers do: code at one address, which calls `leaf_one` while it is
 * "made one" and `leaf_two` while it is "made two". `jit CPU_MS HOW [FILE]`
 *
 *   map FILE      copies FILE to /tmp/perf-PID.map, adds a line for "made one", and stays with it
 *   memfd         the same in memory that is mapped from a memfd
 *   old           the same, with a map that was last written before the program began
 *   late          the same, with a map that is written when half of the time is over
 *   pipe, link FILE   in place of the map is a FIFO, or a link to FILE
 *   replaced      adds a line whenever the code is replaced
 *   python        makes it as CPython does, without a frame pointer (on x86_64)
 *   dump FOLDER   tells of it in FOLDER/jit-PID.dump, with time stamps and source lines
 */

#define _GNU_SOURCE

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bridge.h"
#include "work.h"

#define SIZE 64u
#define MS_BETWEEN_REPLACEMENTS 700u

LEAF(leaf_one)
LEAF(leaf_two)

static char map_path[64];
static char *code;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void add_line(const char *name) {
    FILE *map = fopen(map_path, "a");
    if (!map)
        abort();
    fprintf(map, "%lx %x %s\n", (unsigned long)code, SIZE, name);
    fclose(map);
}

static void copy(const char *from) {
    char buffer[65536];
    size_t length;
    FILE *in = fopen(from, "r"), *out = fopen(map_path, "w");
    if (!in || !out)
        abort();
    while ((length = fread(buffer, 1, sizeof buffer, in)) > 0)
        fwrite(buffer, 1, length, out);
    fclose(in);
    fclose(out);
}

/* linux/tools/perf/Documentation/jitdump-specification.txt */
struct header {
    uint32_t magic, version, size, machine, padding, pid;
    uint64_t time_ns, flags;
};
struct load {
    uint32_t kind, size;
    uint64_t time_ns;
    uint32_t pid, tid;
    uint64_t vma, address, code_size, index;
    char name[16];
    char code[SIZE];
};
struct lines {
    uint32_t kind, size;
    uint64_t time_ns, address, count, first_address;
    uint32_t first_line, first_discriminator;
    char first_file[8];
    uint64_t second_address;
    uint32_t second_line, second_discriminator;
    char second_file[8];
};

static int dump = -1;

static void write_all(const void *bytes, size_t length) {
    if (write(dump, bytes, length) != (ssize_t)length)
        abort();
}

static void open_dump(const char *folder) {
    char path[256];
    snprintf(path, sizeof path, "%s/jit-%d.dump", folder, getpid());
    dump = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (dump < 0 || mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, dump, 0) == MAP_FAILED)
        abort();
    struct header header = {0x4A695444, 1, sizeof header, 62, 0, (uint32_t)getpid(), now_ns(), 0};
    write_all(&header, sizeof header);
}

static void add_record(const char *name, uint32_t line) {
    uint64_t address = (uint64_t)code, time_ns = now_ns();
    struct lines lines = {2, sizeof lines, time_ns, address, 2, address, line, 0, "made.js",
                          address + BRIDGE_CALL, line + 1, 0, "made.js"};
    struct load load = {0, sizeof load, time_ns, (uint32_t)getpid(), (uint32_t)getpid(), address, address, SIZE, line,
                        "", ""};
    strncpy(load.name, name, sizeof load.name - 1);
    write_all(&lines, sizeof lines);
    write_all(&load, sizeof load);
}

#ifdef __x86_64__
/* sub $8, %rsp; call *%rcx; add $8, %rsp; ret: cpython/Python/asm_trampoline.S */
static const unsigned char trampoline[16] = {0x48, 0x83, 0xec, 0x08, 0xff, 0xd1, 0x48, 0x83, 0xc4, 0x08, 0xc3};

static void fill_with_trampolines(char *page) {
    for (size_t at = 0; at < 4096; at += sizeof trampoline)
        memcpy(page + at, trampoline, sizeof trampoline);
}
#else
static void fill_with_trampolines(char *page) { (void)page; }
#endif

static int calls_by_rcx;

static void make(int from_memfd) {
    char *writable;
    if (from_memfd) {
        int memfd = memfd_create("doublemapper", MFD_CLOEXEC);
        if (memfd < 0 || ftruncate(memfd, 4096))
            abort();
        writable = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
        code = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, memfd, 0);
    } else {
        writable = code = writable_page();
    }
    if (!writable || writable == MAP_FAILED || code == MAP_FAILED)
        abort();
    memcpy(writable, bridge_code, sizeof bridge_code);
    if (calls_by_rcx)
        fill_with_trampolines(writable);
    if (from_memfd)
        __builtin___clear_cache(writable, writable + PAGE_BYTES);
    else if (make_executable(code))
        abort();
}

typedef uint64_t by_rcx(uint64_t x, uint64_t, uint64_t, uint64_t (*callee)(uint64_t));

KEPT uint64_t enter_python(by_rcx *made, uint64_t (*leaf)(uint64_t), uint64_t x) {
    uint64_t y = made(x, 0, 0, leaf);
    BARRIER();
    return y ^ x;
}

KEPT uint64_t enter(bridge *made, uint64_t (*leaf)(uint64_t), uint64_t x) {
    uint64_t y = made(leaf, x);
    BARRIER();
    return y ^ x;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000), replace_at = 0, late_at = UINT64_MAX;
    const char *how = argc > 2 ? argv[2] : "", *file = argc > 3 ? argv[3] : "";
    int replaces = !strcmp(how, "replaced") || !strcmp(how, "dump"), two = 1;
    snprintf(map_path, sizeof map_path, "/tmp/perf-%d.map", getpid());
#ifdef __x86_64__
    calls_by_rcx = !strcmp(how, "python");
#endif
    make(!strcmp(how, "memfd"));
    if (!strcmp(how, "map"))
        copy(file);
    if (!strcmp(how, "pipe") && mkfifo(map_path, 0600))
        return 1;
    if (!strcmp(how, "link") && symlink(file, map_path))
        return 1;
    if (!strcmp(how, "late"))
        late_at = enough / 2;
    if (!strcmp(how, "dump"))
        open_dump(file);
    if (!strcmp(how, "map") || !strcmp(how, "memfd") || !strcmp(how, "old") || !strcmp(how, "python"))
        add_line("made one");
    struct timespec long_ago[2] = {{1, 0}, {1, 0}};
    if (!strcmp(how, "old") && utimensat(AT_FDCWD, map_path, long_ago, 0))
        return 1;
    while (cpu_ms() < enough) {
        if (replaces && cpu_ms() >= replace_at) {
            replace_at = cpu_ms() + MS_BETWEEN_REPLACEMENTS;
            two = !two;
            if (dump >= 0)
                add_record(two ? "made two" : "made one", two ? 20 : 10);
            else
                add_line(two ? "made two" : "made one");
        }
        if (cpu_ms() >= late_at) {
            late_at = UINT64_MAX;
            add_line("made one");
        }
        if (calls_by_rcx) {
            sink = enter_python((by_rcx *)code, leaf_one, sink);
            continue;
        }
        sink = enter((bridge *)code, replaces && two ? leaf_two : leaf_one, sink);
    }
    if (dump < 0)
        unlink(map_path);
    return 0;
}
