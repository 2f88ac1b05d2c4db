// The interpreter of tapes of one instruction set: compiled once per target, as target.cpp is.
#include "tape_plan.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LC_JOIN_(a, b) a##b
#define LC_JOIN(a, b) LC_JOIN_(a, b)
#define LC_TEXT_(a) #a
#define LC_TEXT(a) LC_TEXT_(a)

namespace layercompiler {
namespace LC_JOIN(tape_, LC_TARGET) {
#include "vec.hpp"

#include "functions.hpp"

#include "ldl.hpp"
#include "substitute.hpp"

#include "tape.hpp"

#include "descent_data.hpp"

#include "descent.hpp"

template <class V> static size_t descent_bytes(const DescentJob& job) {
  Arena arena{nullptr};
  Descent<V> counted(job, job.count, arena);
  if (lanes_of<V> > 1) Descent<double> one(job, 1, arena);
  return arena.used;
}
template <class V> static void descend_units(const DescentJob& job, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  Descent<V> descent(job, job.count, arena);
  descent.run();
  descent.write();
}

static size_t descent_scratch(const DescentJob& job) { return job.packed ? descent_bytes<Wide>(job) : descent_bytes<double>(job); }
static void descend(const DescentJob& job, void* scratch) { job.packed ? descend_units<Wide>(job, scratch) : descend_units<double>(job, scratch); }
}  // namespace
extern const TapeTarget LC_JOIN(tape_table_, LC_TARGET);
const TapeTarget LC_JOIN(tape_table_, LC_TARGET) = {
    LC_TEXT(LC_TARGET),
    LC_JOIN(tape_, LC_TARGET)::tape_lanes,
    LC_JOIN(tape_, LC_TARGET)::tape_helpers,
    LC_JOIN(tape_, LC_TARGET)::tape_scratch,
    LC_JOIN(tape_, LC_TARGET)::tape_run,
    LC_JOIN(tape_, LC_TARGET)::tape_pack,
    LC_JOIN(tape_, LC_TARGET)::tape_unpack,
    LC_JOIN(tape_, LC_TARGET)::descent_scratch,
    LC_JOIN(tape_, LC_TARGET)::descend,
};
}  // namespace layercompiler
