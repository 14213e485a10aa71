#pragma once

#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include <cobatch/detail/attempt.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/engine/batch_engine.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

// All that knows the type of predict.

template <class Types>
template <class Predict>
constexpr auto batch_engine<Types>::calls_of() -> predict_calls {
  using traits = typename outcome_of<source, Predict>::traits;
  predict_calls calls{};
  calls.takes_token = traits::takes_token;
  calls.repeats = !std::is_rvalue_reference_v<typename traits::argument>;
  calls.drive_plainly = [](batch_engine& self, loop& here, lane& in, worker* driver) {
    return self.template drive_plainly<Predict>(here, in, driver);
  };
  calls.begin = [](batch_engine& self, lane& in, start_mark& mark) {
    return self.template begin_with<Predict, false>(in, mark);
  };
  calls.collect = [](batch_engine& self, lane& in) { self.template collect_with<Predict, false>(in); };
  calls.abandon = [](lane&) noexcept {};
  if constexpr (traits::is_awaitable) {
    using work = attempt<typename traits::raw>;
    calls.work_size = sizeof(work) + (alignof(work) > __STDCPP_DEFAULT_NEW_ALIGNMENT__ ? alignof(work) : 0);
    calls.abandon = [](lane& in) noexcept { work_of<Predict>(in).abandon(); };
  }
  if constexpr (names::weighs) {
    calls.cost = [](batch_engine& self, lane& in) {
      Predict& predict = *static_cast<Predict*>(self.predict_);
      return static_cast<std::size_t>(predict.cost(std::as_const(self.source_.get(in.sample.item, in.sample.index))));
    };
  }
  return calls;
}

template <class Types>
template <class Predict>
auto& batch_engine<Types>::work_of(lane& self) noexcept {
  using work = attempt<typename outcome_of<source, Predict>::traits::raw>;
  if constexpr (alignof(work) > __STDCPP_DEFAULT_NEW_ALIGNMENT__) {
    void* address = self.work;
    std::size_t room = sizeof(work) + alignof(work);
    return *static_cast<work*>(std::align(alignof(work), sizeof(work), address, room));
  } else {
    return *static_cast<work*>(self.work);
  }
}

/// Calls predict for self.sample. What it comes to goes to self.target. Plain, here and below: nothing is to be counted
/// or watched.
template <class Types>
template <class Predict, bool Plain>
[[gnu::always_inline]] inline auto batch_engine<Types>::begin_with(lane& self, [[maybe_unused]] start_mark& mark)
    -> begun {
  using traits = typename outcome_of<source, Predict>::traits;
  bool readable = false;
  const auto call = [&]() -> typename traits::raw {
    Predict& predict = *static_cast<Predict*>(predict_);
    auto&& sample = static_cast<typename traits::argument>(source_.get(self.sample.item, self.sample.index));
    readable = true;
    if (!Plain) before_attempt(self);
    if constexpr (traits::takes_token) {
      return std::invoke(predict, static_cast<typename traits::argument>(sample), self.stop.get_token());
    } else {
      return std::invoke(predict, static_cast<typename traits::argument>(sample));
    }
  };
  const auto attempted = [&]() -> begun {
    if constexpr (traits::is_awaitable) {
      using work = attempt<typename traits::raw>;
      auto& begins = *::new (static_cast<void*>(std::addressof(work_of<Predict>(self)))) work;
      return begins.start(call, self.handle(), mark) ? begun::ready : begun::suspended;
    } else if constexpr (std::is_void_v<typename traits::raw>) {
      call();
      store<typename traits::value, Plain>(self);
      return begun::settled;
    } else {
      store<typename traits::value, Plain>(self, call());
      return begun::settled;
    }
  };
  return guarded(attempted, [&]() -> begun {
    if (readable) {
      failed<Plain>(self);
    } else {
      settle(self.sample.slot, error(errc::input_failed, std::current_exception(), 0));
      note_end(self);
      halt_once(halt::input);
    }
    return begun::settled;
  });
}

/// Predict's awaitable is ready: writes what it comes to.
template <class Types>
template <class Predict, bool Plain>
[[gnu::always_inline]] inline void batch_engine<Types>::collect_with([[maybe_unused]] lane& self) {
  using traits = typename outcome_of<source, Predict>::traits;
  if constexpr (traits::is_awaitable) {
    const auto take = [&](auto&&... outcome) {
      store<typename traits::value, Plain>(self, std::forward<decltype(outcome)>(outcome)...);
    };
    guarded([&] { work_of<Predict>(self).resume(take); }, [&] { failed<Plain>(self); });
  }
}

/// Writes what predict came to. Whatever throws here is the sample's exception.
template <class Types>
template <class PredictValue, bool Plain, class... Value>
[[gnu::always_inline]] inline void batch_engine<Types>::store(lane& self, Value&&... outcome) {
  if (!Plain) {
    measure(self);
    if (!self.target) return;
  }
  result& slot = *self.target;
  if constexpr (is_expected_v<PredictValue>) {
    rewrite(slot, std::forward<Value>(outcome)...);
    if (!slot.has_value()) {
      const errc why = reason(self.timed_out);
      if constexpr (std::is_same_v<error_type, error>) {
        slot.error().attempts = self.sample.attempts;
        if (why != errc::exception) slot.error().code = why;
      } else {
        if (!Plain) self.cause.reset();
        if (why != errc::exception) fail<Plain>(self, error(why, {}, self.sample.attempts));
      }
    }
  } else {
    rewrite_value<PredictValue>(slot, std::forward<Value>(outcome)...);
  }
}

/// Where nothing happens to a sample but its predict. This is the loop that decides what a sample costs; it touches
/// nothing that is shared, and little else.
template <class Types>
template <class Predict>
[[gnu::hot]] auto batch_engine<Types>::drive_plainly(loop& here, lane& self, worker* driver) -> step {
  const auto goes_on = [&] {
    return !halted() && !(this->is_hungry() && here.pace.sharing_due()) && !here.late && !needs_turn(self);
  };
  if (self.at == stage::attempt) {
    self.at = stage::idle;
    collect_with<Predict, true>(self);
    self.waited = true;
    finished_plainly(here, self, driver);
    if (here.pace.tick()) {
      look(here);
      return step::finished;
    }
    if (!goes_on()) return step::finished;
  } else if (halted()) {
    return step::none;
  }
  self.waited = false;
  self.mark = &here.mark;
  do {
    if constexpr (source::indexed) {
      if (driver && !driver->portion.empty()) [[likely]] {
        self.sample.index = driver->portion.begin++;
        self.sample.slot = self.target = sink_.made_slot(self.sample.index);
      } else if (const step found = next_sample(here, self, driver); found != step::finished) {
        return found;
      }
    } else {
      if (const step found = next_sample(here, self, driver); found != step::finished) return found;
    }
    self.sample.attempts = 1;
    here.mark.reopen(&self);
    self.at = stage::attempt;
    const begun state = begin_with<Predict, true>(self, here.mark);
    if (state == begun::suspended && !here.mark.finished()) return step::lost;  // self may be gone
    self.at = stage::idle;
    if (state != begun::settled) collect_with<Predict, true>(self);
    finished_plainly(here, self, driver);
    if (here.pace.tick()) {
      look(here);
      break;
    }
  } while (goes_on());
  return step::finished;
}

template <class Types>
[[gnu::always_inline]] inline void batch_engine<Types>::finished_plainly(loop& here, lane& self, worker* driver) {
  settled(driver ? here.done : self.done, self.sample);
  self.sample.item = nullptr;
  if (needs_.gates && share_.is_over(self, self.waited, wait_.under_way(), ex_)) hand_over_permit(self);
}

}  // namespace cobatch::detail
