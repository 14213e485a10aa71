#pragma once

/// All of cobatch. Each header also stands alone.

#include <cobatch/detail/config.hpp>  // first: says what the compiler must be

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/batch_predict.hpp>
#include <cobatch/batch_predict_into.hpp>
#include <cobatch/batch_predict_many.hpp>
#include <cobatch/callback.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/find_limit.hpp>
#include <cobatch/in_flight.hpp>
#include <cobatch/latency_histogram.hpp>
#include <cobatch/log_observer.hpp>
#include <cobatch/metrics.hpp>
#include <cobatch/metrics_snapshot.hpp>
#include <cobatch/micro_batch_options.hpp>
#include <cobatch/micro_batcher.hpp>
#include <cobatch/observer.hpp>
#include <cobatch/option_types.hpp>
#include <cobatch/predict_stream.hpp>
#include <cobatch/progress_bar.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/resource_pool.hpp>
#include <cobatch/run_loop.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/stream_options.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/task_scope.hpp>
#include <cobatch/thread_pool.hpp>
#include <cobatch/trace.hpp>
#include <cobatch/version.hpp>
#include <cobatch/when_all.hpp>
#include <cobatch/with_timeout.hpp>
