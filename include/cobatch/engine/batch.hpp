#pragma once

#include <cobatch/engine/batch_attempt.hpp>
#include <cobatch/engine/batch_call.hpp>
#include <cobatch/engine/batch_end.hpp>
#include <cobatch/engine/batch_engine.hpp>
#include <cobatch/engine/batch_way.hpp>

/// What is under batch_predict() and predict_stream(); README.md in this folder has the picture.
