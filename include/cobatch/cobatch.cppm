// SPDX-License-Identifier: BSL-1.0
//
// `import cobatch;` instead of `#include <cobatch/cobatch.hpp>`. A module exports no macros: for those include
// <cobatch/version.hpp>. <cobatch/asio.hpp> is no part of it.
module;

#include <cobatch/cobatch.hpp>

export module cobatch;

export namespace cobatch {

using cobatch::adaptive_algorithm;
using cobatch::adaptive_limit;
using cobatch::adaptive_options;
using cobatch::async_semaphore;
using cobatch::async_source;
using cobatch::attempt_event;
using cobatch::bad_expected_access;
using cobatch::batch;
using cobatch::batch_counts;
using cobatch::batch_info;
using cobatch::batch_into;
using cobatch::batch_metrics;
using cobatch::batch_observer;
using cobatch::batch_options;
using cobatch::batch_predict;
using cobatch::batch_predict_into;
using cobatch::batch_predict_many;
using cobatch::batch_summary;
using cobatch::bottleneck;
using cobatch::bucketed;
using cobatch::callback;
using cobatch::deadlock_error;
using cobatch::errc;
using cobatch::error;
using cobatch::error_category;
using cobatch::executor;
using cobatch::expected;
using cobatch::find_limit;
using cobatch::find_limit_options;
using cobatch::first_outcome;
using cobatch::from_callback;
using cobatch::function_executor;
using cobatch::hedge_policy;
using cobatch::in_flight_recorder;
using cobatch::inline_executor;
using cobatch::latency_histogram;
using cobatch::limit_report;
using cobatch::limit_step;
using cobatch::log_field;
using cobatch::log_level;
using cobatch::log_observer;
using cobatch::log_options;
using cobatch::make_error_code;
using cobatch::many_options;
using cobatch::metrics_snapshot;
using cobatch::micro_batch_options;
using cobatch::micro_batcher;
using cobatch::name_of;
using cobatch::no_timeout;
using cobatch::observers;
using cobatch::option_ref;
using cobatch::permit;
using cobatch::predict_stream;
using cobatch::progress_bar;
using cobatch::progress_options;
using cobatch::progress_style;
using cobatch::rate_limiter;
using cobatch::resource_pool;
using cobatch::resource_predict;
using cobatch::result_order;
using cobatch::result_stream;
using cobatch::retry_condition;
using cobatch::retry_event;
using cobatch::retry_later;
using cobatch::retry_policy;
using cobatch::run_loop;
using cobatch::sample_event;
using cobatch::schedule;
using cobatch::scope_failure;
using cobatch::simulate_limits;
using cobatch::simulation;
using cobatch::stop_ref;
using cobatch::stream_item;
using cobatch::stream_options;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::task_scope;
using cobatch::thread_pool;
using cobatch::time_span;
using cobatch::timed_executor;
using cobatch::trace_recorder;
using cobatch::unexpect;
using cobatch::unexpect_t;
using cobatch::unexpected;
using cobatch::unlimited;
using cobatch::unlimited_budget;
using cobatch::version_major;
using cobatch::version_minor;
using cobatch::version_patch;
using cobatch::version_string;
using cobatch::wait_event;
using cobatch::wait_for;
using cobatch::weighted;
using cobatch::when_all;
using cobatch::when_any;
using cobatch::with_resource;
using cobatch::with_timeout;

}  // namespace cobatch
