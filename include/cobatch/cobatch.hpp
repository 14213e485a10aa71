#pragma once

/// All of cobatch. Each header also stands alone.

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/batch_engine.hpp>
#include <cobatch/batch_lane.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/batch_predict.hpp>
#include <cobatch/callback.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/micro_batch_options.hpp>
#include <cobatch/micro_batcher.hpp>
#include <cobatch/observer.hpp>
#include <cobatch/predict_stream.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/run_loop.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>
#include <cobatch/version.hpp>
