/* A plugin for QEMU's user-mode emulation of 64-bit ARM: executed instructions, in all and by class.
 *
 * The guest marks a moment by getpgid(0x4D41524B), which fails and does no harm; each mark adds a line of running
 * totals to the file given as out=PATH: all, float multiply-adds, dot products, loads and stores.
 *
 * Nothing but what the plugin API documents is used, so no header of QEMU is needed. API is the version to build for,
 * which QEMU tells when it refuses another (plugin.py): 1 has counters in the plugin's memory; from 2 on they are
 * scoreboards, a counter a CPU; from 3 on an instruction's bytes are copied out.
 * Encodings: Arm Architecture Reference Manual for A-profile, C4.1. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { ALL, FMA, DOT, LOAD_STORE, CLASSES };
enum { GETPGID = 155, MARKER = 0x4D41524B, ADD = 0 };
struct tb;
struct insn;
struct info { const char *target_name; }; /* its head only */

extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t, void (*)(uint64_t, struct tb *));
extern void qemu_plugin_register_vcpu_syscall_cb(uint64_t, void (*)(uint64_t, unsigned, int64_t, uint64_t, uint64_t,
        uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
extern size_t qemu_plugin_tb_n_insns(const struct tb *);
extern struct insn *qemu_plugin_tb_get_insn(const struct tb *, size_t);

EXPORT int qemu_plugin_version = API;
static FILE *out;

#if API < 2
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct tb *, int, void *, uint64_t);
static uint64_t counters[CLASSES];
static void prepare(void) {}
static void add(struct tb *tb, int k, uint64_t n) { qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD, &counters[k], n); }
static uint64_t total(int k) { return counters[k]; }
#else
typedef struct { void *score; size_t offset; } entry;
extern void *qemu_plugin_scoreboard_new(size_t);
extern void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct tb *, int, entry, uint64_t);
extern uint64_t qemu_plugin_u64_sum(entry);
static void *score;
static entry of(int k) { return (entry){ score, k * sizeof(uint64_t) }; }
static void prepare(void) { score = qemu_plugin_scoreboard_new(CLASSES * sizeof(uint64_t)); }
static void add(struct tb *tb, int k, uint64_t n) { qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, ADD, of(k), n); }
static uint64_t total(int k) { return qemu_plugin_u64_sum(of(k)); }
#endif

#if API < 3
extern const void *qemu_plugin_insn_data(const struct insn *);
static uint32_t word(const struct insn *i) { uint32_t w; memcpy(&w, qemu_plugin_insn_data(i), 4); return w; }
#else
extern size_t qemu_plugin_insn_data(const struct insn *, void *, size_t);
static uint32_t word(const struct insn *i) { uint32_t w = 0; qemu_plugin_insn_data(i, &w, 4); return w; }
#endif

static const struct { uint32_t mask, value; int class; } forms[] = {
    { 0x0a000000, 0x08000000, LOAD_STORE }, /* op0 = x1x0 */
    { 0xbf20fc00, 0x0e20cc00, FMA },        /* FMLA, FMLS (vector) */
    { 0xbf60fc00, 0x0e400c00, FMA },        /* the same in half precision */
    { 0xbf80b400, 0x0f801000, FMA },        /* FMLA, FMLS (by element) */
    { 0xbfc0b400, 0x0f001000, FMA },        /* the same in half precision */
    { 0xff000000, 0x1f000000, FMA },        /* FMADD, FMSUB, FNMADD, FNMSUB (scalar) */
    { 0x9fe0fc00, 0x0e809400, DOT },        /* SDOT, UDOT (vector) */
    { 0x9fc0f400, 0x0f80e000, DOT },        /* SDOT, UDOT (by element) */
    { 0xbfe0fc00, 0x0e809c00, DOT },        /* USDOT (vector) */
    { 0xbf40f400, 0x0f00f000, DOT },        /* USDOT, SUDOT (by element) */
    { 0xdfe0f400, 0x4e80a400, DOT },        /* SMMLA, UMMLA, USMMLA */
};

EXPORT int classify(uint32_t w)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if ((w & forms[i].mask) == forms[i].value) return forms[i].class;
    return ALL;
}

static void translated(uint64_t id, struct tb *tb)
{
    size_t n = qemu_plugin_tb_n_insns(tb);
    uint64_t c[CLASSES] = { 0 };
    for (size_t i = 0; i < n; i++) c[classify(word(qemu_plugin_tb_get_insn(tb, i)))]++;
    c[ALL] = n;
    for (int k = 0; k < CLASSES; k++) if (c[k]) add(tb, k, c[k]);
}

static void called(uint64_t id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    if (number != GETPGID || (uint32_t)a1 != MARKER) return;
    for (int k = 0; k < CLASSES; k++) fprintf(out, k ? " %llu" : "%llu", (unsigned long long)total(k));
    fputc('\n', out);
    fflush(out);
}

EXPORT int qemu_plugin_install(uint64_t id, const struct info *info, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
    if (!out || strcmp(info->target_name, "aarch64")) return -1;
    prepare();
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
