#pragma once

namespace cobatch::detail {

/// A link of an intrusive_list; `Tag` tells the lists apart in which one object can be at the same time.
template <class Tag>
class list_link {
 public:
  list_link() noexcept = default;
  list_link(const list_link&) = delete;
  list_link& operator=(const list_link&) = delete;

  bool linked() const noexcept { return next_ != nullptr; }

 private:
  template <class>
  friend class intrusive_list;

  list_link* previous_ = nullptr;
  list_link* next_ = nullptr;  // null: in no list
};

/// A list that owns nothing and allocates nothing; no lock of its own.
template <class Tag>
class intrusive_list {
 public:
  using link = list_link<Tag>;

  intrusive_list() noexcept { ring_.previous_ = ring_.next_ = &ring_; }
  intrusive_list(const intrusive_list&) = delete;
  intrusive_list& operator=(const intrusive_list&) = delete;

  bool empty() const noexcept { return ring_.next_ == &ring_; }
  link* first() noexcept { return empty() ? nullptr : ring_.next_; }

  void push_back(link& last) noexcept {
    last.previous_ = ring_.previous_;
    last.next_ = &ring_;
    ring_.previous_->next_ = &last;
    ring_.previous_ = &last;
  }

  void erase(link& each) noexcept {
    each.previous_->next_ = each.next_;
    each.next_->previous_ = each.previous_;
    each.previous_ = each.next_ = nullptr;
  }

 private:
  link ring_;  // between the last and the first
};

}  // namespace cobatch::detail
