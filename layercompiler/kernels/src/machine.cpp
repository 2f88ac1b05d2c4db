// Straight-line machine code for tapes. Registers are given by looking ahead: the value that is needed last is the one to leave.
#include "machine.hpp"

#include <cstring>
#include <utility>
#include <vector>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/mman.h>
#define LC_MACHINE 1
#endif

namespace layercompiler {

#if defined(LC_MACHINE)

Machine::~Machine() {
  if (run) munmap(reinterpret_cast<void*>(run), bytes);
}

namespace {

constexpr int vector_bytes = 64, zmms = 32;
enum : int { map_0f = 1, map_0f38 = 2 };
struct Coding {
  int map, opcode;
};
constexpr Coding load_code{map_0f, 0x28}, store_code{map_0f, 0x29}, add_code{map_0f, 0x58}, mul_code{map_0f, 0x59}, sub_code{map_0f, 0x5c}, div_code{map_0f, 0x5e},
    sqrt_code{map_0f, 0x51}, xor_code{map_0f, 0xef}, and_code{map_0f, 0xdb}, compare_code{map_0f, 0xc2}, blend_code{map_0f38, 0x65}, fma231_code{map_0f38, 0xb8},
    fms231_code{map_0f38, 0xba}, fnma231_code{map_0f38, 0xbc};
constexpr int swapped = 0x10;  // from the opcode that adds to its first operand to the one that multiplies by it

constexpr int64_t middle = 128;  // the vector that rbx points to: those around it have short addresses

// An operand: a register, or a vector of memory.
struct Place {
  bool memory;
  int64_t at;
};

class Assembler {
 public:
  std::vector<uint8_t> bytes;

  // EVEX, 512 bits, 66 prefix, W1: reg, second operand (-1: none), third operand.
  void op(Coding c, int reg, int second, Place third, int mask = 0, bool zeroing = false) {
    const int vvvv = second < 0 ? 0 : second;
    const int rm = third.memory ? 3 : (int)third.at;
    const bool x = !third.memory && (rm & 16), b = !third.memory && (rm & 8);
    put(0x62);
    put((reg & 8 ? 0 : 0x80) | (x ? 0 : 0x40) | (b ? 0 : 0x20) | (reg & 16 ? 0 : 0x10) | c.map);
    put(0x80 | ((~vvvv & 15) << 3) | 4 | 1);
    put((zeroing ? 0x80 : 0) | 0x40 | (vvvv & 16 ? 0 : 8) | mask);
    put(c.opcode);
    if (third.memory) {
      const int64_t away = third.at - middle;
      const bool near = away >= -128 && away < 128;
      put((near ? 0x40 : 0x80) | (reg & 7) << 3 | 3);
      if (near) put((int)away & 255);
      else put32(away * vector_bytes);
    } else {
      put(0xc0 | (reg & 7) << 3 | (rm & 7));
    }
  }
  void address(int modrm, int64_t at) { put(0x48), put(0x8d), put(modrm), put32((at - middle) * vector_bytes); }
  void put(int byte) { bytes.push_back((uint8_t)byte); }
  void put32(int64_t value) {
    for (int k = 0; k < 4; k++) put((int)(value >> (8 * k)) & 255);
  }
  void call(TapeHelper helper) {
    uint64_t value;
    std::memcpy(&value, &helper, 8);
    put(0x48), put(0xb8);
    for (int k = 0; k < 8; k++) put((int)(value >> (8 * k)) & 255);
    put(0xff), put(0xd0);
  }
};

class Writer {
 public:
  Writer(const TapeView& tape, const TapeHelper* helpers)
      : t_(tape), helpers_(helpers), inputs_at_(tape.constants), outputs_at_(inputs_at_ + tape.inputs), own_at_(outputs_at_ + tape.outputs),
        values_(tape.registers), holds_(zmms, -1) {
    look_ahead();
  }
  int64_t vectors() const { return own_at_ + t_.registers + 3; }

  // False where an operation has neither an instruction nor a helper.
  bool write() {
    a_.put(0x53), a_.put(0x48), a_.put(0x8d), a_.put(0x9f), a_.put32(middle * vector_bytes);  // push rbx; lea rbx, [rdi + middle]
    for (int32_t r = 0; r < t_.constants; r++) values_[r].home = r;
    for (now_ = 0; now_ < t_.length; now_++)
      if (!instruction(t_.code + 5 * now_)) return false;
    a_.put(0xc5), a_.put(0xf8), a_.put(0x77), a_.put(0x5b), a_.put(0xc3);  // vzeroupper; pop rbx; ret
    return true;
  }
  const std::vector<uint8_t>& bytes() const { return a_.bytes; }

 private:
  // What a register of the tape holds: in `zmm` (-1: none) and, where `home` is not negative, in memory.
  struct Value {
    int zmm = -1;
    int64_t home = -1;
    std::vector<int64_t> reads;  // instructions, last one first, that read what it holds now or later
  };

  static int operands(int32_t operation) {
    switch (operation) {
      case tape_load: return 0;
      case tape_fma: case tape_fms: case tape_fnma: case tape_select: return 3;
      case tape_add: case tape_sub: case tape_mul: case tape_div: case tape_atan2: case tape_pow: case tape_less: case tape_less_equal: case tape_equal:
      case tape_min: case tape_max: return 2;
      default: return 1;
    }
  }
  // A register that is written starts anew: -instruction - 1 marks it among the reads.
  void look_ahead() {
    for (int64_t k = t_.length - 1; k >= 0; k--) {
      const int32_t* c = t_.code + 5 * k;
      if (c[0] != tape_store) values_[c[1]].reads.push_back(-k - 1);
      for (int i = 0; i < operands(c[0]); i++) values_[c[2 + i]].reads.push_back(k);
    }
  }
  // The next instruction after this one that reads what register r holds, or -1.
  int64_t next_read(int r) {
    std::vector<int64_t>& reads = values_[r].reads;
    while (!reads.empty() && (reads.back() >= 0 ? reads.back() <= now_ : -reads.back() - 1 < now_)) reads.pop_back();
    for (size_t k = reads.size(); k-- > 0;) {
      if (reads[k] < 0) {
        if (-reads[k] - 1 == now_) continue;  // this instruction writes it; asked before that, what it holds ends here
        return -1;
      }
      return reads[k] > now_ ? reads[k] : -1;
    }
    return -1;
  }
  // Whether what r holds is not read after this instruction, which may write r anew.
  bool ends(int r) {
    const int32_t* c = t_.code + 5 * now_;
    if (c[0] != tape_store && c[1] == r) return true;
    return next_read(r) < 0;
  }

  int free_zmm() {
    int best = -1;
    int64_t farthest = -1;
    for (int z = 0; z < zmms; z++) {
      if (pinned_[z]) continue;
      if (holds_[z] < 0) return z;
      int64_t next = next_read(holds_[z]);
      if (next < 0) next = INT64_MAX - 1;
      if (next > farthest) farthest = next, best = z;
    }
    leave(best);
    return best;
  }
  void leave(int z) {
    const int r = holds_[z];
    if (r < 0) return;
    Value& v = values_[r];
    if (v.home < 0 && !(now_ < t_.length && dead(r))) {
      v.home = own_at_ + r;
      a_.op(store_code, z, -1, {true, v.home});
    }
    v.zmm = -1, holds_[z] = -1;
  }
  // Not needed by this instruction or later.
  bool dead(int r) {
    const int32_t* c = t_.code + 5 * now_;
    for (int i = 0; i < operands(c[0]); i++)
      if (c[2 + i] == r) return false;
    return ends(r);
  }
  int in_zmm(int r) {
    Value& v = values_[r];
    if (v.zmm < 0) {
      int z = free_zmm();
      a_.op(load_code, z, -1, {true, v.home});
      v.zmm = z, holds_[z] = r;
    }
    pinned_[v.zmm] = true;
    return v.zmm;
  }
  // As the last operand of an instruction: from memory, if it is not needed soon.
  Place operand(int r) {
    Value& v = values_[r];
    if (v.zmm < 0 && ends(r)) return {true, v.home};
    return {false, in_zmm(r)};
  }
  void release() {
    for (bool& p : pinned_) p = false;
  }
  // Register r of the tape is in z from now on; what it held is gone.
  void becomes(int r, int z) {
    Value& v = values_[r];
    if (v.zmm >= 0) holds_[v.zmm] = -1;
    if (holds_[z] >= 0) values_[holds_[z]].zmm = -1;
    v.zmm = z, v.home = -1, holds_[z] = r;
  }
  Place extra(int k) const { return {true, own_at_ + t_.registers + k}; }

  bool instruction(const int32_t* c) {
    const int d = c[1], a = c[2], b = c[3], e = c[4];
    switch (c[0]) {
      case tape_load: {
        Value& v = values_[d];
        if (v.zmm >= 0) holds_[v.zmm] = -1;
        v.zmm = -1, v.home = inputs_at_ + a;
        return true;
      }
      case tape_store: a_.op(store_code, in_zmm(a), -1, {true, outputs_at_ + b}); break;
      case tape_add: binary(add_code, d, a, b, true); break;
      case tape_sub: binary(sub_code, d, a, b, false); break;
      case tape_mul: binary(mul_code, d, a, b, true); break;
      case tape_div: binary(div_code, d, a, b, false); break;
      case tape_fma: multiply_add(fma231_code, d, a, b, e); break;
      case tape_fms: multiply_add(fms231_code, d, a, b, e); break;
      case tape_fnma: multiply_add(fnma231_code, d, a, b, e); break;
      case tape_neg: {
        int x = in_zmm(a), z = target(a, x);
        a_.op(xor_code, z, x, extra(1)), becomes(d, z);
        break;
      }
      case tape_abs: {
        int x = in_zmm(a), z = target(a, x);
        a_.op(and_code, z, x, extra(2)), becomes(d, z);
        break;
      }
      case tape_sqrt: {
        Place x = operand(a);
        int z = free_zmm();
        a_.op(sqrt_code, z, -1, x), becomes(d, z);
        break;
      }
      case tape_less: case tape_less_equal: case tape_equal: {
        int x = in_zmm(a);
        Place y = operand(b);
        a_.op(compare_code, 1, x, y), a_.put(c[0] == tape_less ? 0x11 : c[0] == tape_less_equal ? 0x12 : 0x00);
        int z = free_zmm();
        a_.op(load_code, z, -1, extra(0), 1, true), becomes(d, z);
        break;
      }
      case tape_select: {
        int x = in_zmm(a), no = in_zmm(e), zero = free_zmm();
        pinned_[zero] = true;
        Place yes = operand(b);
        a_.op(xor_code, zero, zero, {false, zero});
        a_.op(compare_code, 1, x, {false, zero}), a_.put(0x04);
        a_.op(blend_code, zero, no, yes, 1), becomes(d, zero);
        break;
      }
      default: return call(c);
    }
    release();
    return true;
  }
  // Where a result may overwrite an operand.
  int target(int operand, int z) {
    if (ends(operand)) {
      holds_[z] = -1, values_[operand].zmm = -1;
      return z;
    }
    return free_zmm();
  }
  void binary(Coding code, int d, int a, int b, bool commutes) {
    if (commutes && values_[a].zmm < 0 && values_[b].zmm >= 0) std::swap(a, b);
    int x = in_zmm(a);
    Place y = operand(b);
    int z = target(a, x);
    a_.op(code, z, x, y), becomes(d, z);
  }
  void multiply_add(Coding code, int d, int a, int b, int e) {
    if (values_[a].zmm < 0 && values_[b].zmm >= 0) std::swap(a, b);
    int x = in_zmm(a);
    if (e != a && e != b && ends(e)) {
      int z = in_zmm(e);
      Place y = operand(b);
      a_.op(code, z, x, y), drop(e), becomes(d, z);
      return;
    }
    if (a != b && a != e && ends(a)) {  // x = y * x + e
      int y = in_zmm(b);
      Place s = operand(e);
      a_.op({code.map, code.opcode - swapped}, x, y, s), drop(a), becomes(d, x);
      return;
    }
    int s = in_zmm(e), y = in_zmm(b), z = free_zmm();
    a_.op(load_code, z, -1, {false, s});
    a_.op(code, z, x, {false, y}), becomes(d, z);
  }
  void drop(int r) {
    if (values_[r].zmm >= 0) holds_[values_[r].zmm] = -1;
    values_[r].zmm = -1;
  }
  // All values go to memory: a function keeps no vector registers.
  bool call(const int32_t* c) {
    TapeHelper helper = helpers_[c[0]];
    if (!helper) return false;
    for (int z = 0; z < zmms; z++) leave(z);
    const int64_t result = own_at_ + c[1];
    a_.address(0xbb, result);                                                    // rdi
    a_.address(0xb3, values_[c[2]].home);                                        // rsi
    a_.address(0x93, values_[operands(c[0]) > 1 ? c[3] : c[2]].home);            // rdx
    a_.call(helper);
    values_[c[1]].home = result;
    return true;
  }

  const TapeView& t_;
  const TapeHelper* helpers_;
  int64_t inputs_at_, outputs_at_, own_at_, now_ = 0;
  std::vector<Value> values_;
  std::vector<int> holds_;  // by zmm: the register of the tape, or -1
  bool pinned_[zmms] = {};
  Assembler a_;
};

}  // namespace

std::unique_ptr<Machine> assemble(const TapeView& tape, const TapeHelper* helpers) {
  Writer writer(tape, helpers);
  if (!writer.write()) return nullptr;
  const std::vector<uint8_t>& code = writer.bytes();
  std::unique_ptr<Machine> made(new Machine);
  made->bytes = code.size();
  void* pages = mmap(nullptr, code.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return nullptr;
  std::memcpy(pages, code.data(), code.size());
  if (mprotect(pages, code.size(), PROT_READ | PROT_EXEC)) {
    munmap(pages, code.size());
    return nullptr;
  }
  std::memcpy(&made->run, &pages, sizeof(pages));
  made->vectors = writer.vectors();
  return made;
}

#else

Machine::~Machine() = default;
std::unique_ptr<Machine> assemble(const TapeView&, const TapeHelper*) { return nullptr; }

#endif

}  // namespace layercompiler
