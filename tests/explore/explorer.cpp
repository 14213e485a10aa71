// The explorer itself. This unit is compiled without instrumentation.

#include "explorer.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // it sees our delete and not our new
#endif

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <new>
#include <vector>

#include <cxxabi.h>
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <csignal>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

extern "C" {
void* __tls_get_addr(void*);
extern char __libc_single_threaded;
}

namespace cobatch_explore {
namespace {

using runtime::clock;
using order = runtime::order;
using place = runtime::place;

void join(clock& to, const clock& from) noexcept {
  for (unsigned i = 0; i < most_threads; ++i) {
    if (from.of[i] > to.of[i]) to.of[i] = from.of[i];
  }
}

// ---- Fibers ----

constexpr std::size_t stack_bytes = 256 * 1024;
constexpr std::size_t heap_bytes = 32 * 1024 * 1024;
constexpr std::size_t arena_bytes = heap_bytes + most_threads * stack_bytes;
constexpr std::size_t most_thread_local_bytes = 4096;
constexpr unsigned outside = most_threads;  // the explorer's own context

#if defined(__x86_64__)
struct context {
  void* stack = nullptr;
};
extern "C" void cobatch_explore_switch(void** from, void* to);
asm(R"(
.text
.globl cobatch_explore_switch
.type cobatch_explore_switch,@function
cobatch_explore_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cobatch_explore_switch,.-cobatch_explore_switch
.section .note.GNU-stack,"",@progbits
.text
)");
void prepare(context& of, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + stack_bytes);
  *--top = nullptr;  // where it would return to; the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  top -= 6;
  for (int i = 0; i < 6; ++i) top[i] = nullptr;
  of.stack = top;
}
void exchange(context& from, context& to) {
  cobatch_explore_switch(&from.stack, to.stack);
}
#else
struct context {
  ucontext_t of;
};
void prepare(context& made, char* stack, void (*entry)()) {
  getcontext(&made.of);
  made.of.uc_stack.ss_sp = stack;
  made.of.uc_stack.ss_size = stack_bytes;
  made.of.uc_link = nullptr;
  makecontext(&made.of, entry, 0);
}
void exchange(context& from, context& to) {
  swapcontext(&from.of, &to.of);
}
#endif

// ---- State ----

enum class waits : unsigned char { no, pause, mutex, condition, atomic, others, item };
const char* const waits_name[] = {"runs",
                                  "pauses",
                                  "waits for a mutex",
                                  "waits in a condition variable",
                                  "waits for an atomic",
                                  "waits for threads to end",
                                  "waits for an item"};

struct logical {
  bool exists = false, ended = false;
  waits what = waits::no;
  const void* object = nullptr;
  unsigned joins = 0;  // bits of threads
  std::int64_t deadline = runtime::never;
  bool timed_out = false, notified = false;
  int impatient = 0;
  std::uint64_t paused_at = 0;
  clock now, acquired, released;
  std::uint64_t priority = 0;
  std::function<void()> body;
  context fiber;
  void* exceptions[2] = {};
  alignas(64) char thread_locals[most_thread_local_bytes];
};

struct written {
  std::uint64_t value;
  std::uint32_t at;
  unsigned by;
  clock view;
  std::uint32_t seen[most_threads];
};
constexpr std::uint64_t kept = 8;  // values of one location
struct location {
  char* address;
  unsigned size;
  bool dead;
  std::uint64_t count;     // stores so far
  std::uint64_t sc_floor;  // a seq_cst load returns none before this one
  written stores[kept];
};

// One for each 8 bytes of the arena.
struct shadow {
  std::uint32_t run;
  bool alive, has_location;
  std::uint8_t writer, written_bytes;
  std::uint32_t written, written_pc;
  std::uint32_t read[most_threads], atomically[most_threads], pc[most_threads];
  std::uint8_t read_bytes[most_threads], atomic_bytes[most_threads];
};

struct node {
  std::uint16_t chosen, count;
};
enum class mode { all, random, given };

char* arena = nullptr;
shadow* shadows = nullptr;
logical* all = nullptr;  // most_threads of them, and the outside
unsigned running = outside;
unsigned made = 0;
int in_runtime = 1;
std::uint32_t run_number = 0;
std::size_t heap_used = 0;
std::size_t blocks = 0;  // of the heap, that are not freed
char* thread_local_block = nullptr;
std::size_t thread_local_size = 0;
const char* thread_local_image = nullptr;
std::size_t thread_local_image_size = 0;
std::uintptr_t program_base = 0;

std::int64_t virtual_now = 0;
std::uint64_t steps = 0;
options how;
int preemptions_left = 0, stale_left = 0;
mode strategy = mode::all;
std::vector<node> trail;
std::size_t at_choice = 0;
std::map<std::size_t, unsigned> given;
std::uint64_t random_state = 1;
std::uint64_t lowest_priority = 0;
std::vector<std::uint64_t> change_points;
clock sc_fences;

bool tracing = false;
std::string trace_text;
std::map<const void*, std::string> names;
bool has_failed = false;
std::string failure;

constexpr std::size_t most_locations = 8192;
location* locations = nullptr;
std::size_t location_count = 0;
constexpr std::size_t table_size = 32768;
struct slot {
  char* address;
  std::uint32_t run;
  std::uint32_t index;
};
slot* table = nullptr;
struct lasting {
  char* address;
  unsigned size;
  std::uint64_t value;
};
std::vector<lasting> outside_arena;  // static objects: as they were before the run

struct inside {
  inside() noexcept { ++in_runtime; }
  inside(const inside&) = delete;
  inside& operator=(const inside&) = delete;
  ~inside() { --in_runtime; }
};

logical& self() noexcept {
  return all[running];
}
bool exploring() noexcept {
  return running != outside;
}

std::uint64_t random_number() noexcept {
  random_state += 0x9e3779b97f4a7c15u;
  std::uint64_t bits = random_state;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}
bool one_in(std::uint64_t n) noexcept {
  return random_number() % n == 0;
}

void go_to(unsigned next) {
  if (next == running) return;
  logical& from = self();
  logical& to = all[next];
  auto* const globals = reinterpret_cast<void**>(abi::__cxa_get_globals());
  std::memcpy(from.exceptions, globals, sizeof from.exceptions);
  std::memcpy(globals, to.exceptions, sizeof to.exceptions);
  std::memcpy(from.thread_locals, thread_local_block, thread_local_size);
  std::memcpy(thread_local_block, to.thread_locals, thread_local_size);
  const int nested = in_runtime;
  running = next;
  exchange(from.fiber, to.fiber);
  in_runtime = nested;
}

// ---- What is told ----

std::string symbol(std::uintptr_t pc) {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  char text[64];
  std::snprintf(text, sizeof text, "0x%zx", static_cast<std::size_t>(pc));
  if (length <= 0) return text;
  path[length] = 0;
  std::string answer;
  const std::string command = std::string("addr2line -sfCpe '") + path + "' " + text + " 2>/dev/null";
  if (FILE* const pipe = popen(command.c_str(), "r")) {
    char line[1024];
    while (std::fgets(line, sizeof line, pipe)) answer += line;
    pclose(pipe);
  }
  while (!answer.empty() && answer.back() == '\n') answer.pop_back();
  return answer.empty() ? text : answer;
}

std::string name_of(const void* address) {
  std::string& name = names[address];
  if (name.empty()) name = "#" + std::to_string(names.size());
  return name;
}

const char* short_file(const char* path) noexcept {
  const char* const slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

const char* order_name(order of) noexcept {
  switch (of) {
    case order::relaxed:
      return "relaxed";
    case order::consume:
    case order::acquire:
      return "acquire";
    case order::release:
      return "release";
    case order::acq_rel:
      return "acq_rel";
    default:
      return "seq_cst";
  }
}

void tell(const std::string& what, const place* where = nullptr) {
  if (!tracing) return;
  char text[64];
  std::snprintf(text, sizeof text, "%5llu  thread %u  ", static_cast<unsigned long long>(steps), running);
  trace_text += text + what;
  if (where) trace_text += std::string("  ") + short_file(where->file_name()) + ":" + std::to_string(where->line());
  trace_text += '\n';
}

[[noreturn]] void fail(const std::string& what) {
  ++in_runtime;
  has_failed = true;
  failure = what + " (thread " + std::to_string(running) + ", step " + std::to_string(steps) + ")";
  for (;;) go_to(outside);
}

std::string schedule_text() {
  std::string text;
  for (std::size_t i = 0; i < at_choice && i < trail.size(); ++i) {
    if (trail[i].chosen != 0) {
      text += (text.empty() ? "" : ",") + std::to_string(i) + ":" + std::to_string(trail[i].chosen);
    }
  }
  return text.empty() ? "-" : text;
}

// ---- Choices ----

/// One of `of`; where all are explored, only of the first `allowed`.
unsigned choice(unsigned allowed, unsigned of, unsigned at_random) {
  const std::size_t here = at_choice++;
  unsigned chosen = 0;
  switch (strategy) {
    case mode::all:
      if (here < trail.size()) {
        if (trail[here].count != allowed) fail("the code does not do the same twice: something else decides, too");
        return trail[here].chosen;
      }
      break;
    case mode::random:
      chosen = at_random;
      break;
    case mode::given:
      if (const auto found = given.find(here); found != given.end()) chosen = found->second < of ? found->second : 0;
      break;
  }
  trail.push_back({static_cast<std::uint16_t>(chosen), static_cast<std::uint16_t>(allowed)});
  return chosen;
}

bool enabled(const logical& each) noexcept {
  if (!each.exists || each.ended) return false;
  switch (each.what) {
    case waits::no:
      return true;
    case waits::pause:
      return false;
    case waits::mutex:
      return static_cast<const runtime::hand_over*>(each.object)->owner < 0;
    case waits::condition:
    case waits::atomic:
      return each.notified;
    case waits::others:
      for (unsigned i = 0; i < made; ++i) {
        if ((each.joins >> i & 1u) != 0 && !all[i].ended) return false;
      }
      return true;
    case waits::item:
      return static_cast<const channel*>(each.object)->ready();
  }
  return false;
}

/// Something has changed: who spins looks again.
void changed() noexcept {
  for (unsigned i = 0; i < made; ++i) {
    if (i != running && all[i].what == waits::pause) all[i].what = waits::no;
  }
}

[[noreturn]] void deadlock() {
  std::string text = "deadlock:";
  for (unsigned i = 0; i < made; ++i) {
    if (!all[i].ended) {
      text += " thread " + std::to_string(i) + " " + waits_name[static_cast<int>(all[i].what)] + ";";
    }
  }
  fail(text);
}

/// A step: lets any thread that can go on do so; returns when it is this one's turn.
void schedule() {
  if (++steps > how.steps) fail("no end within " + std::to_string(how.steps) + " steps");
  logical& here = self();
  unsigned list[2 * most_threads], count = 0;
  const bool ready = enabled(here);
  if (ready) list[count++] = running;
  for (unsigned i = 0; i < made; ++i) {
    if (i != running && enabled(all[i])) list[count++] = i;
  }
  const unsigned normal = count;
  std::int64_t first = runtime::never;
  for (unsigned i = 0; i < made; ++i) {
    const logical& each = all[i];
    if (each.exists && !each.ended && each.what == waits::condition && !each.notified && each.deadline < first) {
      first = each.deadline;
    }
  }
  if (first != runtime::never) {
    for (unsigned i = 0; i < made; ++i) {
      const logical& each = all[i];
      if (each.exists && !each.ended && each.what == waits::condition && !each.notified && each.deadline == first) {
        list[count++] = i;
      }
    }
  }
  if (count == 0) {
    // All that could go on spin: the one that has done so longest, after a while.
    unsigned longest = outside;
    for (unsigned i = 0; i < made; ++i) {
      if (all[i].exists && !all[i].ended && all[i].what == waits::pause &&
          (longest == outside || all[i].paused_at < all[longest].paused_at)) {
        longest = i;
      }
    }
    if (longest == outside) deadlock();
    all[longest].what = waits::no;
    virtual_now += 1'000;
    if (longest != running) go_to(longest);
    return;
  }
  unsigned index = 0;
  if (count > 1) {
    unsigned at_random = 0;
    if (strategy == mode::random) {
      for (const std::uint64_t each : change_points) {
        if (each == steps) here.priority = --lowest_priority;
      }
      for (unsigned i = 1; i < normal; ++i) {
        if (all[list[i]].priority > all[list[at_random]].priority) at_random = i;
      }
      if (normal < count && (normal == 0 || one_in(32)))
        at_random = normal + static_cast<unsigned>(random_number() % (count - normal));
    }
    const unsigned free = normal == 0 ? count : ready ? 1 : normal;
    index = choice(preemptions_left > 0 ? count : free, count, at_random);
    if (index >= free) --preemptions_left;
  }
  const unsigned next = list[index];
  if (index >= normal) {
    all[next].timed_out = true;
    if (all[next].deadline > virtual_now) virtual_now = all[next].deadline;
  }
  if (next == running) return;
  go_to(next);
}

void wait_for(waits what, const void* object) {
  logical& here = self();
  here.what = what;
  here.object = object;
  schedule();
  here.what = waits::no;
}

// ---- Memory ----

bool in_arena(const volatile void* address) noexcept {
  const auto offset =
      static_cast<std::size_t>(reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(arena));
  return offset < arena_bytes;
}
bool on_heap(const volatile void* address) noexcept {
  const auto offset =
      static_cast<std::size_t>(reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(arena));
  return offset < heap_bytes;
}

enum class access : unsigned char { read, write, atomic, end };

slot& slot_of(const char* address) noexcept {
  auto hash = static_cast<std::size_t>(reinterpret_cast<std::uintptr_t>(address) * 0x9e3779b97f4a7c15u >> 40);
  for (;; ++hash) {
    slot& each = table[hash % table_size];
    if (each.run != run_number || each.address == address) return each;
  }
}
location* known_location(const char* address) noexcept {
  const slot& found = slot_of(address);
  if (found.run != run_number) return nullptr;
  location& known = locations[found.index];
  return known.dead ? nullptr : &known;
}

[[noreturn]] void race(const char* what, unsigned with, std::uint32_t their_pc, std::uintptr_t pc) {
  ++in_runtime;
  fail("data race: thread " + std::to_string(running) + " " + what + " at " + symbol(pc - program_base - 1) +
       ", unordered with thread " + std::to_string(with) + " at " +
       (their_pc ? symbol(their_pc - 1) : std::string("an allocation")));
}

void touch_word(char* word, std::uint8_t bytes, access kind, std::uintptr_t pc) {
  shadow& here = shadows[static_cast<std::size_t>(word - arena) / 8];
  if (here.run != run_number) {
    if (on_heap(word)) {
      ++in_runtime;
      fail("access to memory that was never allocated, at " + symbol(pc - program_base - 1));
    }
    here = shadow{};
    here.run = run_number;
    here.alive = true;
  }
  if (!here.alive) [[unlikely]] {
    ++in_runtime;
    fail("access after the end: memory that was freed by thread " + std::to_string(here.writer) + " at " +
         symbol(here.written_pc - 1) + ", at " + symbol(pc - program_base - 1));
  }
  const clock& now = self().now;
  const auto small_pc = static_cast<std::uint32_t>(pc - program_base);
  if (here.writer != running && (here.written_bytes & bytes) != 0 && here.written > now.of[here.writer]) [[unlikely]] {
    race(kind == access::read    ? "reads"
         : kind == access::write ? "writes"
         : kind == access::end   ? "frees"
                                 : "uses an atomic",
         here.writer, here.written_pc, pc);
  }
  if (kind == access::read) {
    here.read_bytes[running] =
        static_cast<std::uint8_t>(here.read[running] == now.of[running] ? here.read_bytes[running] | bytes : bytes);
    here.read[running] = now.of[running];
    here.pc[running] = small_pc;
    return;
  }
  if (kind == access::atomic) {
    here.atomic_bytes[running] = static_cast<std::uint8_t>(
        here.atomically[running] == now.of[running] ? here.atomic_bytes[running] | bytes : bytes);
    here.atomically[running] = now.of[running];
    here.pc[running] = small_pc;
    return;
  }
  for (unsigned i = 0; i < made; ++i) {
    if (i == running) continue;
    if (((here.read_bytes[i] & bytes) != 0 && here.read[i] > now.of[i]) ||
        ((here.atomic_bytes[i] & bytes) != 0 && here.atomically[i] > now.of[i])) [[unlikely]] {
      race(kind == access::end ? "frees" : "writes", i, here.pc[i], pc);
    }
  }
  if (here.has_location) {
    here.has_location = false;
    for (int i = 0; i < 8; ++i) {
      location* const known = known_location(word + i);
      if (!known) continue;
      if ((bytes >> i & 1) != 0) {
        known->dead = true;
      } else {
        here.has_location = true;
      }
    }
  }
  here.written_bytes = static_cast<std::uint8_t>(
      here.writer == running && here.written == now.of[running] ? here.written_bytes | bytes : bytes);
  here.writer = static_cast<std::uint8_t>(running);
  here.written = now.of[running];
  here.written_pc = small_pc;
  if (kind == access::end) here.alive = false;
}

void touch(const volatile void* address, std::size_t size, access kind, void* from) {
  if (in_runtime != 0 || !exploring() || !in_arena(address)) return;
  char* at = static_cast<char*>(const_cast<void*>(address));
  char* const end = at + size;
  while (at < end) {
    char* const word = arena + (static_cast<std::size_t>(at - arena) & ~std::size_t{7});
    const auto first = static_cast<unsigned>(at - word);
    const auto last = end - word < 8 ? static_cast<unsigned>(end - word) : 8u;
    touch_word(word, static_cast<std::uint8_t>((0xffu >> (8 - last)) & (0xffu << first)), kind,
               reinterpret_cast<std::uintptr_t>(from));
    at = word + 8;
  }
}

void* allocate(std::size_t size) {
  const std::size_t rounded = (size + 15) / 16 * 16;
  if (heap_used + rounded + 32 > heap_bytes) fail("the run needs more memory than there is for it");
  char* const block = arena + heap_used + 16;
  std::memcpy(block - 16, &rounded, sizeof rounded);
  heap_used += rounded + 16;
  ++blocks;
  const clock& now = self().now;
  for (std::size_t i = 0; i < rounded; i += 8) {
    shadow& each = shadows[static_cast<std::size_t>(block + i - arena) / 8];
    each = shadow{};
    each.run = run_number;
    each.alive = true;
    each.writer = static_cast<std::uint8_t>(running);
    each.written_bytes = 0xff;
    each.written = now.of[running];
  }
  return block;
}

void release(void* memory, void* from) {
  char* const block = static_cast<char*>(memory);
  std::size_t rounded = 0;
  std::memcpy(&rounded, block - 16, sizeof rounded);
  if (exploring() && in_runtime == 0) {
    if (!shadows[static_cast<std::size_t>(block - arena) / 8].alive) fail("memory is freed twice");
    touch(memory, rounded, access::end, from);
    std::memset(memory, 0xdd, rounded);
  }
  --blocks;
}

// ---- Atomics ----

std::uint64_t raw(const char* at, unsigned size) noexcept {
  std::uint64_t value = 0;
  std::memcpy(&value, at, size);
  return value;
}
void set_raw(char* at, unsigned size, std::uint64_t value) noexcept {
  std::memcpy(at, &value, size);
}
std::uint64_t cut(std::uint64_t value, unsigned size) noexcept {
  return size == 8 ? value : value & ((std::uint64_t{1} << (8 * size)) - 1);
}

written& store_of(location& at, std::uint64_t index) noexcept {
  return at.stores[index % kept];
}

location& find(const volatile void* address, unsigned size) {
  char* const at = static_cast<char*>(const_cast<void*>(address));
  slot& found = slot_of(at);
  if (found.run == run_number) {
    location& known = locations[found.index];
    if (!known.dead && known.size == size && store_of(known, known.count - 1).value == raw(at, size)) return known;
  } else {
    if (location_count == most_locations) fail("too many atomics");
    found.run = run_number;
    found.address = at;
    found.index = static_cast<std::uint32_t>(location_count++);
    if (!in_arena(at)) outside_arena.push_back({at, size, raw(at, size)});
  }
  location& made_now = locations[found.index];
  made_now.address = at;
  made_now.size = size;
  made_now.dead = false;
  made_now.count = 1;
  made_now.sc_floor = 0;
  written& initial = made_now.stores[0];
  initial = written{};
  initial.value = raw(at, size);
  if (in_arena(at)) shadows[static_cast<std::size_t>(at - arena) / 8].has_location = true;
  return made_now;
}

void tick() noexcept {
  ++self().now.of[running];
}

bool acquires(order of) noexcept {
  return of == order::acquire || of == order::consume || of == order::acq_rel || of == order::seq_cst;
}
bool releases(order of) noexcept {
  return of == order::release || of == order::acq_rel || of == order::seq_cst;
}

void has_read(location& at, std::uint64_t index, order of) noexcept {
  written& seen = store_of(at, index);
  logical& here = self();
  if (seen.seen[running] == 0) seen.seen[running] = here.now.of[running];
  if (of == order::seq_cst && index > at.sc_floor) at.sc_floor = index;
  join(acquires(of) ? here.now : here.acquired, seen.view);
}

void append(location& at, std::uint64_t value, order of, const clock* continues) noexcept {
  logical& here = self();
  written& made_now = store_of(at, at.count);
  const clock before = continues ? *continues : clock{};
  made_now = written{};
  made_now.value = cut(value, at.size);
  made_now.by = running;
  made_now.at = here.now.of[running];
  made_now.seen[running] = made_now.at;
  made_now.view = before;
  join(made_now.view, releases(of) ? here.now : here.released);
  if (of == order::seq_cst) at.sc_floor = at.count;
  ++at.count;
  set_raw(at.address, at.size, value);
  changed();
}

/// The stores that a load may read from, the newest first.
unsigned readable(location& at, order of, std::uint64_t (&into)[kept]) noexcept {
  const clock& now = self().now;
  unsigned count = 0;
  for (std::uint64_t index = at.count; index-- > 0 && at.count - index <= kept;) {
    if (of == order::seq_cst && index < at.sc_floor) break;
    into[count++] = index;
    const written& each = store_of(at, index);
    bool known = false;
    for (unsigned i = 0; i < made; ++i) known = known || (each.seen[i] != 0 && each.seen[i] <= now.of[i]);
    if (known) break;
  }
  return count;
}

/// One of `count` values of which all but the first are stale.
unsigned choose_value(unsigned count) {
  if (count < 2) return 0;
  const unsigned at_random =
      strategy == mode::random && stale_left > 0 && one_in(6) ? static_cast<unsigned>(random_number() % count) : 0;
  const unsigned chosen = choice(stale_left > 0 ? count : 1, count, at_random);
  if (chosen != 0) --stale_left;
  return chosen;
}

std::string value_text(std::uint64_t value) {
  char text[32];
  if (value < 100'000) {
    std::snprintf(text, sizeof text, "%llu", static_cast<unsigned long long>(value));
  } else {
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  }
  return text;
}

std::uint64_t apply(runtime::change what, std::uint64_t value, std::uint64_t operand) noexcept {
  using runtime::change;
  switch (what) {
    case change::exchange:
      return operand;
    case change::add:
      return value + operand;
    case change::subtract:
      return value - operand;
    case change::conjunction:
      return value & operand;
    case change::disjunction:
      return value | operand;
    case change::exclusive:
      return value ^ operand;
  }
  return operand;
}
const char* const change_name[] = {"exchange", "fetch_add", "fetch_sub", "fetch_and", "fetch_or", "fetch_xor"};

}  // namespace

namespace runtime {

std::uint64_t load(const volatile void* at, unsigned size, order of, place where) noexcept {
  const char* const address = static_cast<const char*>(const_cast<const void*>(at));
  if (!exploring() || in_runtime != 0) return raw(address, size);
  touch(at, size, access::atomic, __builtin_return_address(0));
  const inside guard;
  schedule();
  location& here = find(at, size);
  std::uint64_t list[kept];
  const unsigned chosen = choose_value(readable(here, of, list));
  const std::uint64_t value = store_of(here, list[chosen]).value;
  has_read(here, list[chosen], of);
  if (tracing) {
    tell("load " + name_of(address) + " " + order_name(of) + " -> " + value_text(value) +
             (chosen != 0 ? " (stale)" : ""),
         &where);
  }
  tick();
  return value;
}

void store(volatile void* at, unsigned size, std::uint64_t value, order of, place where) noexcept {
  char* const address = static_cast<char*>(const_cast<void*>(at));
  if (!exploring() || in_runtime != 0) return set_raw(address, size, value);
  touch(at, size, access::atomic, __builtin_return_address(0));
  const inside guard;
  schedule();
  if (tracing) tell("store " + name_of(address) + " " + order_name(of) + " <- " + value_text(value), &where);
  append(find(at, size), value, of, nullptr);
  tick();
}

std::uint64_t modify(volatile void* at, unsigned size, change what, std::uint64_t operand, order of,
                     place where) noexcept {
  char* const address = static_cast<char*>(const_cast<void*>(at));
  if (!exploring() || in_runtime != 0) {
    const std::uint64_t before = raw(address, size);
    set_raw(address, size, apply(what, before, operand));
    return before;
  }
  touch(at, size, access::atomic, __builtin_return_address(0));
  const inside guard;
  schedule();
  location& here = find(at, size);
  const std::uint64_t newest = here.count - 1;
  const std::uint64_t before = store_of(here, newest).value;
  has_read(here, newest, of);
  const clock view = store_of(here, newest).view;
  append(here, apply(what, before, operand), of, &view);
  if (tracing) {
    tell(std::string(change_name[static_cast<int>(what)]) + " " + name_of(address) + " " + order_name(of) + " " +
             value_text(before) + " -> " + value_text(store_of(here, here.count - 1).value),
         &where);
  }
  tick();
  return before;
}

bool compare_exchange(volatile void* at, unsigned size, std::uint64_t& expected, std::uint64_t desired, order success,
                      order failure, bool weak, place where) noexcept {
  char* const address = static_cast<char*>(const_cast<void*>(at));
  if (!exploring() || in_runtime != 0) {
    const std::uint64_t before = raw(address, size);
    if (before == expected) return set_raw(address, size, desired), true;
    expected = before;
    return false;
  }
  touch(at, size, access::atomic, __builtin_return_address(0));
  const inside guard;
  schedule();
  location& here = find(at, size);
  const std::uint64_t newest = here.count - 1;
  std::uint64_t list[kept];
  unsigned count = readable(here, failure, list);
  // It succeeds with the newest value alone, and fails only with another than expected, or, if weak, for no reason.
  unsigned left = 1;
  for (unsigned i = 1; i < count; ++i) {
    if (store_of(here, list[i]).value != expected) list[left++] = list[i];
  }
  count = left;
  const bool matches = store_of(here, newest).value == expected;
  const bool may_fail = weak && matches && count < kept;
  if (may_fail) list[count++] = newest;
  const unsigned chosen = choose_value(count);
  if (chosen == 0 && matches) {
    has_read(here, newest, success);
    const clock view = store_of(here, newest).view;
    append(here, desired, success, &view);
    if (tracing) {
      tell("compare_exchange " + name_of(address) + " " + order_name(success) + " " + value_text(expected) + " -> " +
               value_text(desired),
           &where);
    }
    tick();
    return true;
  }
  const std::uint64_t value = store_of(here, list[chosen]).value;
  has_read(here, list[chosen], failure);
  if (tracing) {
    tell("compare_exchange " + name_of(address) + " " + order_name(failure) + " fails: " + value_text(value) +
             (value == expected ? " (for no reason)"
              : chosen != 0     ? " (stale)"
                                : ""),
         &where);
  }
  expected = value;
  tick();
  return false;
}

void wait(const volatile void* at, unsigned size, std::uint64_t old, order of, place where) noexcept {
  while (load(at, size, of, where) == old) {
    if (!exploring()) return;
    const inside guard;
    if (raw(static_cast<const char*>(const_cast<const void*>(at)), size) != old) continue;
    tell("waits for " + name_of(const_cast<const void*>(at)), &where);
    self().notified = false;
    wait_for(waits::atomic, const_cast<const void*>(at));
  }
}

void notify(const volatile void* at, bool everybody, place where) noexcept {
  if (!exploring() || in_runtime != 0) return;
  const inside guard;
  schedule();
  tell("notify " + name_of(const_cast<const void*>(at)), &where);
  (void)everybody;  // whoever is woken in vain waits again
  for (unsigned i = 0; i < made; ++i) {
    if (all[i].what == waits::atomic && all[i].object == at) all[i].notified = true;
  }
  changed();
}

void fence(order of, place where) noexcept {
  if (!exploring() || in_runtime != 0) return;
  const inside guard;
  schedule();
  tell(std::string("fence ") + order_name(of), &where);
  logical& here = self();
  if (acquires(of)) join(here.now, here.acquired);
  if (of == order::seq_cst) {
    join(here.now, sc_fences);
    sc_fences = here.now;
  }
  if (releases(of)) here.released = here.now;
  tick();
}

// ---- Mutexes and condition variables ----

void hand_over::lock(const char* what) noexcept {
  if (!exploring() || in_runtime != 0) return;
  touch(this, sizeof *this, access::atomic, __builtin_return_address(0));
  const inside guard;
  if (owner == static_cast<int>(running)) fail("a thread locks a mutex that it holds");
  wait_for(waits::mutex, this);
  owner = static_cast<int>(running);
  join(self().now, released);
  if (tracing) tell(std::string(what) + " mutex " + name_of(this));
  tick();
}

bool hand_over::try_lock(const char* what) noexcept {
  if (!exploring() || in_runtime != 0) return true;
  touch(this, sizeof *this, access::atomic, __builtin_return_address(0));
  const inside guard;
  schedule();
  // It may fail for no reason.
  const bool taken = owner < 0 && choose_value(2) == 0;
  if (taken) {
    owner = static_cast<int>(running);
    join(self().now, released);
  }
  if (tracing) tell(std::string(what) + " mutex " + name_of(this) + (taken ? "" : " fails"));
  tick();
  return taken;
}

void hand_over::unlock(const char* what) noexcept {
  if (!exploring() || in_runtime != 0) return;
  touch(this, sizeof *this, access::atomic, __builtin_return_address(0));
  const inside guard;
  // No step: whatever could happen just before it can happen just before the next one.
  if (owner != static_cast<int>(running)) fail("a thread unlocks a mutex that it does not hold");
  owner = -1;
  released = self().now;
  if (tracing) tell(std::string(what) + " mutex " + name_of(this));
  tick();
  changed();
}

bool wait(unsigned& waiting, hand_over& mutex, std::int64_t deadline) noexcept {
  if (!exploring() || in_runtime != 0) return true;
  touch(&waiting, sizeof waiting, access::atomic, __builtin_return_address(0));
  const inside guard;
  schedule();
  logical& here = self();
  if (deadline != never && deadline <= virtual_now) {
    mutex.owner = -1;
    mutex.released = here.now;
    tick();
    changed();
    wait_for(waits::mutex, &mutex);
    mutex.owner = static_cast<int>(running);
    join(here.now, mutex.released);
    return false;
  }
  if (tracing) tell("waits in condition variable " + name_of(&waiting) + ", unlocks mutex " + name_of(&mutex));
  mutex.owner = -1;
  mutex.released = here.now;
  tick();
  changed();
  waiting |= 1u << running;
  here.notified = here.timed_out = false;
  here.deadline = deadline;
  wait_for(waits::condition, &waiting);
  here.deadline = never;
  const bool notified = here.notified;
  if (!notified) waiting &= ~(1u << running);
  wait_for(waits::mutex, &mutex);
  mutex.owner = static_cast<int>(running);
  join(here.now, mutex.released);
  if (tracing) tell((notified ? "was notified" : "timed out") + std::string(", locks mutex ") + name_of(&mutex));
  tick();
  return notified;
}

void notify(unsigned& waiting, bool everybody) noexcept {
  if (!exploring() || in_runtime != 0) return;
  touch(&waiting, sizeof waiting, access::atomic, __builtin_return_address(0));
  const inside guard;
  schedule();
  if (tracing) tell("notifies condition variable " + name_of(&waiting));
  unsigned list[most_threads], count = 0;
  for (unsigned i = 0; i < made; ++i) {
    if ((waiting >> i & 1u) != 0) list[count++] = i;
  }
  if (count > 0 && !everybody) {
    const unsigned chosen = count > 1 ? choice(count, count, static_cast<unsigned>(random_number() % count)) : 0;
    list[0] = list[chosen];
    count = 1;
  }
  for (unsigned i = 0; i < count; ++i) {
    waiting &= ~(1u << list[i]);
    all[list[i]].notified = true;
  }
  tick();
}

// ---- Threads ----

}  // namespace runtime

namespace {

void body_of_fiber() {
  in_runtime = 0;
  const unsigned number = running;
  try {
    all[number].body();
    all[number].body = nullptr;  // with what it holds
  } catch (const std::exception& thrown) {
    ++in_runtime;
    fail(std::string("an exception left a thread: ") + thrown.what());
  } catch (...) {
    ++in_runtime;
    fail("an exception left a thread");
  }
  ++in_runtime;
  all[number].ended = true;
  changed();
  if (number == 0) {
    for (unsigned i = 1; i < made; ++i) {
      if (!all[i].ended) fail("a thread outlives the run");
    }
    if (blocks != 0) fail(std::to_string(blocks) + " blocks of memory are never freed");
    go_to(outside);
  }
  tell("ends");
  schedule();
  std::abort();
}

int make_thread(std::function<void()> body) {
  if (made == most_threads) fail("too many threads");
  const unsigned number = made++;
  logical& fresh = all[number];
  fresh.exists = true;
  fresh.ended = false;
  fresh.what = waits::no;
  fresh.deadline = runtime::never;
  fresh.notified = fresh.timed_out = false;
  fresh.impatient = 0;
  fresh.now = exploring() ? self().now : clock{};
  fresh.acquired = fresh.released = clock{};
  fresh.now.of[number] = 1;
  fresh.priority = (std::uint64_t{1} << 40) + (random_number() >> 32);
  fresh.body = std::move(body);
  fresh.exceptions[0] = fresh.exceptions[1] = nullptr;
  std::memset(fresh.thread_locals, 0, thread_local_size);
  std::memcpy(fresh.thread_locals, thread_local_image, thread_local_image_size);
  prepare(fresh.fiber, arena + heap_bytes + number * stack_bytes, &body_of_fiber);
  if (exploring()) tick();
  return static_cast<int>(number);
}

void wait_for_threads(unsigned bits) {
  logical& here = self();
  here.joins = bits;
  wait_for(waits::others, nullptr);
  for (unsigned i = 0; i < made; ++i) {
    if ((bits >> i & 1u) != 0) join(here.now, all[i].now);
  }
  tick();
}

}  // namespace

namespace runtime {

int start_thread(std::function<void()> body) {
  if (!exploring()) std::abort();
  const inside guard;
  const int number = make_thread(std::move(body));
  tell("starts thread " + std::to_string(number));
  return number;
}

void join_thread(int thread) noexcept {
  const inside guard;
  if (thread < 0) fail("there is no thread to wait for");
  wait_for_threads(1u << thread);
}

}  // namespace runtime

void threads(const std::vector<std::function<void()>>& bodies) {
  const inside guard;
  unsigned bits = 0;
  for (const auto& each : bodies) bits |= 1u << make_thread(each);
  wait_for_threads(bits);
}

void check(bool fine, const char* what) {
  if (fine || !exploring()) return;
  ++in_runtime;
  fail(std::string("check: ") + what);
}

int choose(int n) {
  if (!exploring() || n < 2) return 0;
  const inside guard;
  const auto count = static_cast<unsigned>(n);
  return static_cast<int>(choice(count, count, static_cast<unsigned>(random_number() % count)));
}

std::uint64_t steps_done() noexcept {
  return steps;
}
unsigned this_thread() noexcept {
  return running;
}
std::int64_t steady_now() noexcept {
  return virtual_now;
}
void let_pass(std::int64_t nanoseconds) noexcept {
  virtual_now += nanoseconds;
}

void spin_pause() noexcept {
  if (!exploring() || in_runtime != 0) return;
  const inside guard;
  logical& here = self();
  if (here.impatient > 0) {
    --here.impatient;
    if (++steps > how.steps) fail("no end within " + std::to_string(how.steps) + " steps");
    return;
  }
  bool alone = true;
  for (unsigned i = 0; i < made; ++i) alone = alone && (i == running || !enabled(all[i]));
  if (!alone) {
    // It may spin for long while nobody else gets anywhere.
    const bool may = preemptions_left > 0;
    if (choice(may ? 2 : 1, 2, strategy == mode::random && may && one_in(4) ? 1 : 0) == 1) {
      --preemptions_left;
      here.impatient = 40;
      tell("spins for long");
      return;
    }
  }
  here.paused_at = steps;
  if (strategy == mode::random) here.priority = --lowest_priority;
  wait_for(waits::pause, nullptr);
}

void remark(const char* text) noexcept {
  if (!exploring() || in_runtime != 0) return;
  const inside guard;
  tell(std::string("-- ") + text);
}

void channel::push(void* item) {
  const inside guard;
  schedule();
  if (count_ == most) fail("the channel is full");
  if (closed_) fail("something is sent to a channel that is closed");
  for (std::size_t i = 0; i < count_; ++i) {
    if (items_[(first_ + i) % most] == item) fail("the same is sent twice");
  }
  if (tracing) tell("sends " + name_of(item));
  items_[(first_ + count_++) % most] = item;
  join(released_, self().now);
  tick();
}

void* channel::pop() {
  const inside guard;
  wait_for(waits::item, this);
  if (count_ == 0) return nullptr;
  void* const item = items_[first_];
  first_ = (first_ + 1) % most;
  --count_;
  join(self().now, released_);
  if (tracing) tell("takes " + name_of(item));
  tick();
  return item;
}

void* channel::pop_unless_all_wait(std::size_t count) {
  {
    const inside guard;
    schedule();
    ++waiting_;
  }
  if (count_ == 0 && waiting_ == count) close();
  void* const item = pop();
  --waiting_;
  return item;
}

void channel::close() {
  const inside guard;
  closed_ = true;
  join(released_, self().now);
  tick();
}

// ---- Runs ----

namespace {

void on_signal(int number) {
  std::fprintf(stderr, "explore: signal %d in thread %u, step %llu, schedule %s\n%s", number, running,
               static_cast<unsigned long long>(steps), schedule_text().c_str(), trace_text.c_str());
  _exit(3);
}

void prepare_once() {
  if (arena) return;
  const auto map = [](std::size_t bytes) {
    void* const got = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) std::abort();
    return static_cast<char*>(got);
  };
  arena = map(arena_bytes);
  shadows = reinterpret_cast<shadow*>(map(arena_bytes / 8 * sizeof(shadow)));
  locations = reinterpret_cast<location*>(map(most_locations * sizeof(location)));
  table = reinterpret_cast<slot*>(map(table_size * sizeof(slot)));
  all = new logical[most_threads + 1];
  dl_iterate_phdr(
      [](dl_phdr_info* program, std::size_t, void*) {
        program_base = program->dlpi_addr;
        for (int i = 0; i < program->dlpi_phnum; ++i) {
          const auto& part = program->dlpi_phdr[i];
          if (part.p_type != PT_TLS) continue;
          thread_local_size = part.p_memsz;
          thread_local_image = reinterpret_cast<const char*>(program->dlpi_addr + part.p_vaddr);
          thread_local_image_size = part.p_filesz;
        }
        return 1;  // the first one is the program
      },
      nullptr);
  if (thread_local_size > most_thread_local_bytes) std::abort();
  std::size_t index[2] = {1, 0};  // the program's block of thread-local variables
  if (thread_local_size > 0) thread_local_block = static_cast<char*>(__tls_get_addr(index));
  // Else the standard library leaves out what it needs only between threads.
  __libc_single_threaded = 0;
  static char stack[64 * 1024];
  stack_t other{};
  other.ss_sp = stack;
  other.ss_size = sizeof stack;
  sigaltstack(&other, nullptr);
  for (const int each : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) {
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK;
    sigaction(each, &action, nullptr);
  }
}

void run_once(const std::function<void()>& body) {
  ++run_number;
  location_count = 0;
  heap_used = 0;
  blocks = 0;
  made = 0;
  steps = 0;
  virtual_now = 1'000'000'000;
  at_choice = 0;
  preemptions_left = how.preemptions;
  stale_left = how.stale;
  sc_fences = clock{};
  has_failed = false;
  lowest_priority = std::uint64_t{1} << 39;
  for (unsigned i = 0; i < most_threads; ++i) all[i].exists = false;
  in_runtime = 1;
  make_thread(body);
  go_to(0);
  in_runtime = 1;
  for (const lasting& each : outside_arena) set_raw(each.address, each.size, each.value);
  outside_arena.clear();
}

result run_with_trace(const std::function<void()>& body, result of) {
  of.schedule = schedule_text();
  of.failed = true;
  of.what = failure;
  const mode before = strategy;
  given.clear();
  for (std::size_t i = 0; i < trail.size() && i < at_choice; ++i) given[i] = trail[i].chosen;
  strategy = mode::given;
  trail.clear();
  tracing = true;
  trace_text.clear();
  names.clear();
  run_once(body);
  tracing = false;
  of.trace = trace_text;
  if (!has_failed || failure != of.what)
    of.trace += "(run again, it came to: " + (has_failed ? failure : "nothing") + ")\n";
  strategy = before;
  return of;
}

}  // namespace

result explore_all(const std::function<void()>& body, options wanted) {
  prepare_once();
  how = wanted;
  strategy = mode::all;
  trail.clear();
  result of;
  for (;;) {
    run_once(body);
    ++of.runs;
    of.steps += steps;
    if (has_failed) return run_with_trace(body, of);
    trail.resize(at_choice);
    while (!trail.empty() && trail.back().chosen + 1 >= trail.back().count) trail.pop_back();
    if (trail.empty()) {
      of.complete = true;
      return of;
    }
    if (of.runs == how.most_runs) return of;
    ++trail.back().chosen;
  }
}

result explore_at_random(const std::function<void()>& body, std::uint64_t runs, std::uint64_t seed, int depth,
                         options wanted) {
  prepare_once();
  how = wanted;
  how.preemptions = 1 << 20;
  how.stale = wanted.stale + 3;
  strategy = mode::random;
  result of;
  std::uint64_t longest = 100;
  for (; of.runs < runs;) {
    random_state = seed * 0x2545f4914f6cdd1du + of.runs * 0x9e3779b9u;
    change_points.clear();
    for (int i = 1; i < depth; ++i) change_points.push_back(1 + random_number() % longest);
    trail.clear();
    run_once(body);
    ++of.runs;
    of.steps += steps;
    if (steps > longest) longest = steps;
    if (has_failed) return run_with_trace(body, of);
  }
  return of;
}

result replay(const std::function<void()>& body, const std::string& schedule, options wanted) {
  prepare_once();
  how = wanted;
  how.preemptions = how.stale = 1 << 20;
  strategy = mode::given;
  given.clear();
  trail.clear();
  const char* at = schedule.c_str();
  while (*at != 0 && *at != '-') {
    char* end = nullptr;
    const auto index = std::strtoull(at, &end, 10);
    if (*end != ':') break;
    given[index] = static_cast<unsigned>(std::strtoul(end + 1, &end, 10));
    at = *end == ',' ? end + 1 : end;
  }
  tracing = true;
  trace_text.clear();
  names.clear();
  run_once(body);
  tracing = false;
  result of;
  of.runs = 1;
  of.steps = steps;
  of.failed = has_failed;
  of.what = has_failed ? failure : "";
  of.schedule = schedule;
  of.trace = trace_text;
  return of;
}

}  // namespace cobatch_explore

// ---- What instrumented code calls ----

using cobatch_explore::access;
namespace ex = cobatch_explore;

#define COBATCH_EXPLORE_PLAIN(size)                                  \
  extern "C" void __tsan_read##size(void* at) {                      \
    ex::touch(at, size, access::read, __builtin_return_address(0));  \
  }                                                                  \
  extern "C" void __tsan_write##size(void* at) {                     \
    ex::touch(at, size, access::write, __builtin_return_address(0)); \
  }                                                                  \
  extern "C" void __tsan_unaligned_read##size(void* at) {            \
    ex::touch(at, size, access::read, __builtin_return_address(0));  \
  }                                                                  \
  extern "C" void __tsan_unaligned_write##size(void* at) {           \
    ex::touch(at, size, access::write, __builtin_return_address(0)); \
  }                                                                  \
  extern "C" void __tsan_volatile_read##size(void* at) {             \
    ex::touch(at, size, access::read, __builtin_return_address(0));  \
  }                                                                  \
  extern "C" void __tsan_volatile_write##size(void* at) {            \
    ex::touch(at, size, access::write, __builtin_return_address(0)); \
  }                                                                  \
  extern "C" void __tsan_read_write##size(void* at) {                \
    ex::touch(at, size, access::write, __builtin_return_address(0)); \
  }                                                                  \
  extern "C" void __tsan_unaligned_read_write##size(void* at) {      \
    ex::touch(at, size, access::write, __builtin_return_address(0)); \
  }

COBATCH_EXPLORE_PLAIN(1)
COBATCH_EXPLORE_PLAIN(2)
COBATCH_EXPLORE_PLAIN(4)
COBATCH_EXPLORE_PLAIN(8)
COBATCH_EXPLORE_PLAIN(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* at, std::size_t size) {
  ex::touch(at, size, access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* at, std::size_t size) {
  ex::touch(at, size, access::write, __builtin_return_address(0));
}
void __tsan_vptr_read(void** at) {
  ex::touch(at, 8, access::read, __builtin_return_address(0));
}
void __tsan_vptr_update(void** at, void*) {
  ex::touch(at, 8, access::write, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, std::size_t size) {
  ex::touch(from, size, access::read, __builtin_return_address(0));
  ex::touch(to, size, access::write, __builtin_return_address(0));
  return std::memcpy(to, from, size);
}
void* __tsan_memmove(void* to, const void* from, std::size_t size) {
  ex::touch(from, size, access::read, __builtin_return_address(0));
  ex::touch(to, size, access::write, __builtin_return_address(0));
  return std::memmove(to, from, size);
}
void* __tsan_memset(void* to, int value, std::size_t size) {
  ex::touch(to, size, access::write, __builtin_return_address(0));
  return std::memset(to, value, size);
}

// The standard library's own atomics: stop tokens, shared pointers.
#define COBATCH_EXPLORE_CHANGE(bits, type, name, what)                                               \
  type __tsan_atomic##bits##_##name(volatile type* at, type value, int of) {                         \
    return static_cast<type>(ex::runtime::modify(at, sizeof(type), ex::runtime::change::what, value, \
                                                 static_cast<std::memory_order>(of),                 \
                                                 std::source_location::current()));                  \
  }
#define COBATCH_EXPLORE_ATOMIC(bits, type)                                                                            \
  type __tsan_atomic##bits##_load(const volatile type* at, int of) {                                                  \
    return static_cast<type>(                                                                                         \
        ex::runtime::load(at, sizeof(type), static_cast<std::memory_order>(of), std::source_location::current()));    \
  }                                                                                                                   \
  void __tsan_atomic##bits##_store(volatile type* at, type value, int of) {                                           \
    ex::runtime::store(at, sizeof(type), value, static_cast<std::memory_order>(of), std::source_location::current()); \
  }                                                                                                                   \
  COBATCH_EXPLORE_CHANGE(bits, type, exchange, exchange)                                                              \
  COBATCH_EXPLORE_CHANGE(bits, type, fetch_add, add)                                                                  \
  COBATCH_EXPLORE_CHANGE(bits, type, fetch_sub, subtract)                                                             \
  COBATCH_EXPLORE_CHANGE(bits, type, fetch_and, conjunction)                                                          \
  COBATCH_EXPLORE_CHANGE(bits, type, fetch_or, disjunction)                                                           \
  COBATCH_EXPLORE_CHANGE(bits, type, fetch_xor, exclusive)                                                            \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type* at, type* expected, type desired, int of,          \
                                                    int failure) {                                                    \
    std::uint64_t seen = *expected;                                                                                   \
    const bool done = ex::runtime::compare_exchange(                                                                  \
        at, sizeof(type), seen, desired, static_cast<std::memory_order>(of), static_cast<std::memory_order>(failure), \
        false, std::source_location::current());                                                                      \
    *expected = static_cast<type>(seen);                                                                              \
    return done;                                                                                                      \
  }                                                                                                                   \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type* at, type* expected, type desired, int of,            \
                                                  int failure) {                                                      \
    return __tsan_atomic##bits##_compare_exchange_strong(at, expected, desired, of, failure);                         \
  }                                                                                                                   \
  type __tsan_atomic##bits##_compare_exchange_val(volatile type* at, type expected, type desired, int of,             \
                                                  int failure) {                                                      \
    __tsan_atomic##bits##_compare_exchange_strong(at, &expected, desired, of, failure);                               \
    return expected;                                                                                                  \
  }

COBATCH_EXPLORE_ATOMIC(8, std::uint8_t)
COBATCH_EXPLORE_ATOMIC(16, std::uint16_t)
COBATCH_EXPLORE_ATOMIC(32, std::uint32_t)
COBATCH_EXPLORE_ATOMIC(64, std::uint64_t)
void __tsan_atomic_thread_fence(int of) {
  ex::runtime::fence(static_cast<std::memory_order>(of), std::source_location::current());
}
void __tsan_atomic_signal_fence(int) {}

// What the standard library's loops call that wait: a futex is never slept on, whoever comes back looks again.
int sched_yield() noexcept {
  ex::spin_pause();
  return 0;
}
long syscall(long number, ...) noexcept {
  if (ex::exploring() && number == SYS_futex) {
    ex::spin_pause();
    return 0;
  }
  va_list arguments;
  va_start(arguments, number);
  long values[6];
  for (long& each : values) each = va_arg(arguments, long);
  va_end(arguments);
  static const auto real = reinterpret_cast<long (*)(long, ...)>(dlsym(RTLD_NEXT, "syscall"));
  return real(number, values[0], values[1], values[2], values[3], values[4], values[5]);
}
// std::this_thread::get_id(): a thread that stops its own callback is told from any other by it.
pthread_t pthread_self() noexcept {
  static const auto real = reinterpret_cast<pthread_t (*)()>(dlsym(RTLD_NEXT, "pthread_self"));
  return ex::exploring() ? static_cast<pthread_t>(ex::this_thread() + 1) : real();
}
}

// ---- Memory of a run ----

void* operator new(std::size_t size) {
  if (ex::exploring() && ex::in_runtime == 0) return ex::allocate(size);
  if (void* const got = std::malloc(size ? size : 1)) return got;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t align) {
  if (ex::exploring() && ex::in_runtime == 0) {
    const auto to = static_cast<std::size_t>(align);
    // The heap is a multiple of 16; what needs more gets a place of its own.
    ex::heap_used += (to - (reinterpret_cast<std::uintptr_t>(ex::arena) + ex::heap_used + 16) % to) % to;
    return ex::allocate(size);
  }
  if (void* const got = std::aligned_alloc(static_cast<std::size_t>(align),
                                           (size + static_cast<std::size_t>(align) - 1) /
                                               static_cast<std::size_t>(align) * static_cast<std::size_t>(align)))
    return got;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  if (ex::in_arena(memory)) return ex::release(memory, __builtin_return_address(0));
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  if (ex::in_arena(memory)) return ex::release(memory, __builtin_return_address(0));
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  operator delete(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  operator delete(memory);
}
