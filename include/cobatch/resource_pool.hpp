#pragma once

#include <concepts>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/call_with_token.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/engine/types.hpp>
#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/task.hpp>

namespace cobatch::inline COBATCH_ABI {

/// Lends each of a number of things to one coroutine at a time: models that are not to be called by two at once,
/// connections, devices.
///
/// Order: first come, first served. Of the things that are free, the one that came back last is lent.
/// Lifetime: must outlive its leases and who waits for one.
/// Thread safety: any thread; what is lent belongs to who holds the lease.
template <class T>
class resource_pool {
 public:
  class lease;

  /// Builds all `count` of them now, each as `make()` or `make(number)`, numbers from 0.
  /// Errors: what make throws; std::invalid_argument where count is 0.
  template <class Make>
  static std::unique_ptr<resource_pool> built(std::size_t count, Make make) {
    auto pool = std::make_unique<resource_pool>(count, std::move(make));
    for (std::size_t i = 0; i < count; ++i) pool->all_[i] = pool->make_(i);
    return pool;
  }

  /// `count` of them, each built as `make()` or `make(number)` when one is needed and none is free, on the thread of who
  /// needs it. It may be called on several threads at once.
  /// Errors: std::invalid_argument where count is 0.
  template <class Make>
  resource_pool(std::size_t count, Make make)
      : permits_(count), all_(count), make_([make = std::move(make)]([[maybe_unused]] std::size_t number) mutable {
          if constexpr (std::is_invocable_v<Make&, std::size_t>) {
            return std::unique_ptr<T>(new T(make(number)));
          } else {
            return std::unique_ptr<T>(new T(make()));
          }
        }) {
    static_assert(std::copy_constructible<Make>, "cobatch: resource_pool: make is kept in a std::function, and must be copyable");
    if (count == 0) detail::throw_or_fail<std::invalid_argument>("resource_pool: there must be one at least");
    free_.reserve(count);
    while (count > 0) free_.push_back(--count);
  }
  resource_pool(const resource_pool&) = delete;
  resource_pool& operator=(const resource_pool&) = delete;

  std::size_t size() const noexcept { return all_.size(); }
  /// How many are lent at this moment.
  std::size_t lent() const noexcept { return all_.size() - permits_.available(); }
  /// How many coroutines wait for one at this moment.
  std::size_t waiting() const noexcept { return permits_.waiting(); }

  COBATCH_COROUTINES_BEGIN
  /// `co_await` gives a lease once one is free.
  ///
  /// Resumes: on the executor on which it was suspended.
  /// Stops: while it waits; the error is then errc::cancelled.
  /// Errors: what make threw, as errc::exception; nothing is lent then.
  task<expected<lease, error>> acquire(std::stop_token stop = {}) {
    auto asks = permits_.acquire(1, std::move(stop));
    expected<permit, error> permitted = co_await asks;
    if (!permitted) co_return unexpected<error>(std::move(permitted).error());
    co_return lend(*std::move(permitted));
  }
  COBATCH_COROUTINES_END

 private:
  expected<lease, error> lend(permit held) {
    std::size_t number = 0;
    {
      const std::lock_guard lock(mutex_);
      number = free_.back();  // there is one for each permit
      free_.pop_back();
    }
    lease lent(*this, number, std::move(held));
    return detail::guarded(
        [&]() -> expected<lease, error> {
          if (!all_[number]) all_[number] = make_(number);
          return std::move(lent);
        },
        []() -> expected<lease, error> {
          return unexpected<error>(error(errc::exception, std::current_exception()));
        });
  }
  void give_back(std::size_t number) noexcept {
    const std::lock_guard lock(mutex_);
    free_.push_back(number);  // there is room
  }

  async_semaphore permits_;
  std::vector<std::unique_ptr<T>> all_;  // each belongs to who holds its number
  std::function<std::unique_ptr<T>(std::size_t)> make_;
  detail::mutex mutex_;            // guards the numbers
  std::vector<std::size_t> free_;  // the last to come back is the first to go
};

/// One of the things, until the lease ends. Movable.
template <class T>
class [[nodiscard]] resource_pool<T>::lease {
 public:
  lease(lease&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), number_(other.number_), permit_(std::move(other.permit_)) {}
  lease& operator=(lease&& other) noexcept {
    lease old(std::move(*this));
    pool_ = std::exchange(other.pool_, nullptr);
    number_ = other.number_;
    permit_ = std::move(other.permit_);
    return *this;
  }
  ~lease() { give_back(); }

  T& operator*() const noexcept { return *pool_->all_[number_]; }
  T* operator->() const noexcept { return pool_->all_[number_].get(); }
  /// Which one it is, from 0.
  std::size_t number() const noexcept { return number_; }

  /// Gives it back before the end.
  void give_back() noexcept {
    if (!pool_) return;
    std::exchange(pool_, nullptr)->give_back(number_);
    permit_.release();  // after it, so that there is one for each permit; the pool may be gone
  }
  /// It is broken: destroys it and gives its place back. It is built anew when it is needed.
  void discard() noexcept {
    if (pool_) pool_->all_[number_].reset();
    give_back();
  }

 private:
  friend resource_pool;
  lease(resource_pool& pool, std::size_t number, permit held) noexcept
      : pool_(&pool), number_(number), permit_(std::move(held)) {}

  resource_pool* pool_;
  std::size_t number_;
  permit permit_;
};

/// What with_resource() returns: a predict.
template <class T, class Use>
class resource_predict {
  template <class Sample>
  static constexpr bool takes_token = std::is_invocable_v<Use&, T&, Sample&, std::stop_token>;
  template <class Raw>
  struct awaited {
    using type = std::remove_cvref_t<Raw>;
  };
  template <class Raw>
    requires detail::awaitable<Raw>
  struct awaited<Raw> {
    using type = std::remove_cvref_t<detail::await_result<Raw>>;
  };
  template <class Sample>
  using raw = std::decay_t<decltype(detail::call_with_token(std::declval<Use&>(), std::stop_token(), std::declval<T&>(),
                                                            std::declval<Sample&>()))>;
  template <class Sample>
  using outcome = typename detail::slot_of<typename awaited<raw<Sample>>::type>::type;

 public:
  resource_predict(resource_pool<T>& pool, Use use) : pool_(&pool), use_(std::move(use)) {}

  COBATCH_COROUTINES_BEGIN
  template <class Sample>
    requires(takes_token<Sample> || std::is_invocable_v<Use&, T&, Sample&>)
  task<outcome<Sample>> operator()(Sample& sample, std::stop_token stop) {
    using value = typename awaited<raw<Sample>>::type;
    auto asks = pool_->acquire(stop);
    auto acquired = co_await std::move(asks);
    if (!acquired) co_return outcome<Sample>(unexpect, std::move(acquired).error());
    typename resource_pool<T>::lease held = *std::move(acquired);
    if constexpr (detail::awaitable<raw<Sample>>) {
      auto works = detail::call_with_token(use_, stop, *held, sample);
      if constexpr (std::is_void_v<value>) {
        co_await std::move(works);
        co_return outcome<Sample>();
      } else if constexpr (std::is_same_v<value, outcome<Sample>>) {
        co_return co_await std::move(works);
      } else {
        co_return outcome<Sample>(std::in_place, co_await std::move(works));
      }
    } else if constexpr (std::is_void_v<value>) {
      detail::call_with_token(use_, stop, *held, sample);
      co_return outcome<Sample>();
    } else if constexpr (std::is_same_v<value, outcome<Sample>>) {
      co_return detail::call_with_token(use_, stop, *held, sample);
    } else {
      co_return outcome<Sample>(std::in_place, detail::call_with_token(use_, stop, *held, sample));
    }
  }
  COBATCH_COROUTINES_END

 private:
  resource_pool<T>* pool_;
  Use use_;
};

/// `with_resource(pool, use)`: a predict that holds one of the things while `use(thing, sample)`, or `use(thing, sample,
/// stop_token)`, computes or is awaited. Until one is free the sample is in flight, and waits. What it comes to is what
/// `use` gives; where there is nothing to be had, why.
///
/// Lifetime: refers to the pool.
template <class T, class Use>
resource_predict<T, std::decay_t<Use>> with_resource(resource_pool<T>& pool, Use&& use) {
  return {pool, std::forward<Use>(use)};
}

}  // namespace cobatch
