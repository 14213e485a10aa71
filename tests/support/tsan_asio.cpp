/// ThreadSanitizer does not see fences. Asio's any_executor counts who shares what it holds with one.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() { return "race:shared_target_executor\n"; }
