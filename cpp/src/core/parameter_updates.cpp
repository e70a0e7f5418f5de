// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <typeinfo>

#include "core/parameters.hpp"
#include "mpsnn/weights.hpp"

/// How gradients reach the data sources, and new values the graph (MPS_SEMANTICS 7.8, 12.2).
namespace mpsnn {
namespace {

void require_same_count(const std::string& label, const char* what, const Buffer& result, std::size_t count) {
  if (result.count() == count) return;
  throw WeightError("data source \"" + label + "\": the state that its update returned has " + std::to_string(result.count()) + " " + what + ", " +
                        std::to_string(count) + " are needed.",
                    {.node = "MPSState", .label = label, .expected = std::to_string(count), .actual = std::to_string(result.count()),
                     .hint = "make the result state from the source state's sizes"});
}

/// Takes new values over unless they were computed in place.
void take(const Buffer& target, const Buffer& result) {
  if (result && target && result.data() != target.data()) target.copy_from(result);
}

}  // namespace

void ParameterStore::record_updates(CommandBuffer& command_buffer, const std::shared_ptr<ParameterStore>& self, const std::vector<Shape>& source_shapes) {
  for (std::size_t i = 0; i < trained_.size(); ++i) {
    if (trained_[i].style != NNTrainingStyle::UpdateDeviceGPU || trained_[i].is_updated_by_engine) continue;
    if (trained_[i].convolution) record_convolution_update(command_buffer, self, trained_[i], source_shapes[i]);
    else if (trained_[i].normalization) record_normalization_update(command_buffer, self, trained_[i], source_shapes[i]);
    else record_affine_update(command_buffer, self, trained_[i]);
  }
}

void ParameterStore::record_convolution_update(CommandBuffer& command_buffer, const std::shared_ptr<ParameterStore>& self, const TrainedParameters& trained,
                                               const Shape& source) {
  const ConvolutionValues& values = *trained.convolution;
  const auto source_state = this->source_state(values);
  const auto result = values.source->update(command_buffer, gradient_state(trained, source, gradients_), source_state);
  if (!result) return;
  require_same_count(values.label, "weights", result->weights, values.weights.count);
  if (result->biases) require_same_count(values.label, "biases", result->biases, values.biases.count);
  command_buffer.record([self, source_state, result] {
    take(source_state->weights, result->weights);
    take(source_state->biases, result->biases);
    ++self->version_;
  });
}

void ParameterStore::record_normalization_update(CommandBuffer& command_buffer, const std::shared_ptr<ParameterStore>& self, const TrainedParameters& trained,
                                               const Shape& source) {
  const BatchNormalizationValues& values = *trained.normalization;
  const auto state = normalization_state(trained, source, gradients_);
  const auto affine = values.source->update_gamma_and_beta(command_buffer, state);
  const auto statistics = values.source->update_mean_and_variance(command_buffer, state);
  const std::size_t channels = values.gamma.count;
  if (affine) {
    require_same_count(values.label, "values of gamma", affine->gamma, channels);
    if (affine->beta) require_same_count(values.label, "values of beta", affine->beta, channels);
  }
  if (statistics) {
    require_same_count(values.label, "means", statistics->mean, channels);
    require_same_count(values.label, "variances", statistics->variance, channels);
  }
  if (!affine && !statistics) return;
  command_buffer.record([self, &values, affine, statistics] {
    if (affine) {
      take(self->values(values.gamma), affine->gamma);
      take(self->values(values.beta), affine->beta);
    }
    if (statistics) {
      take(self->values(values.mean), statistics->mean);
      take(self->values(values.variance), statistics->variance);
    }
    ++self->version_;
  });
}

void ParameterStore::record_affine_update(CommandBuffer& command_buffer, const std::shared_ptr<ParameterStore>& self, const TrainedParameters& trained) {
  const AffineValues& values = *trained.affine;
  const auto result = values.source->update_gamma_and_beta(command_buffer, {affine_state(trained, gradients_)});
  if (!result) return;
  require_same_count(values.label, "values of gamma", result->gamma, values.gamma.count);
  if (result->beta) require_same_count(values.label, "values of beta", result->beta, values.beta.count);
  command_buffer.record([self, &values, result] {
    take(self->values(values.gamma), result->gamma);
    take(self->values(values.beta), result->beta);
    ++self->version_;
  });
}

bool ParameterStore::has_updates(NNTrainingStyle style) const {
  return std::any_of(trained_.begin(), trained_.end(), [&](const TrainedParameters& trained) { return trained.style == style; });
}

namespace {

/// The data source of a trained node when it is one of ours, else null.
TrainedDataSource* own_source(const TrainedParameters& trained) {
  if (trained.convolution) return dynamic_cast<TrainedDataSource*>(trained.convolution->source.get());
  if (trained.normalization) return dynamic_cast<TrainedDataSource*>(trained.normalization->source.get());
  return dynamic_cast<TrainedDataSource*>(trained.affine->source.get());
}

}  // namespace

std::function<void()> ParameterStore::remember() {
  const Buffer before(parameters_.count(), type_);
  before.copy_from(parameters_);
  std::vector<std::function<void()>> undo;
  for (const TrainedParameters& trained : trained_)
    if (TrainedDataSource* own = own_source(trained)) undo.push_back(own->remember());
  return [this, before, undo] {
    parameters_.copy_from(before);
    for (const auto& step : undo) step();
    ++version_;
  };
}

void ParameterStore::run_updates(const std::vector<Shape>& source_shapes, const Buffer& gradients, std::function<void()> undo) {
  const bool has_application_source = std::any_of(trained_.begin(), trained_.end(), [](const TrainedParameters& trained) {
    return trained.style == NNTrainingStyle::UpdateDeviceCPU && own_source(trained) == nullptr;
  });
  // Our own sources fail here, before anything has changed, or not at all: no copies of weights and histories, which would cost more
  // than the updates themselves.
  prepare_own_sources({NNTrainingStyle::UpdateDeviceCPU});
  if (!undo && has_application_source) undo = remember();
  try {
    Changed changed;
    for (const bool is_own : {false, true}) {
      for (std::size_t i = 0; i < trained_.size(); ++i) {
        if (trained_[i].style != NNTrainingStyle::UpdateDeviceCPU || (own_source(trained_[i]) != nullptr) != is_own) continue;
        if (is_own) run(own_update(trained_[i], source_shapes[i], gradients));
        else update_application_source(trained_[i], source_shapes[i], gradients, changed);
      }
      // Our own sources follow when nothing of the application can fail any more.
      if (!is_own) reload(changed);
    }
  } catch (...) {
    if (undo) undo();
    throw;
  }
  ++version_;
}

void ParameterStore::prepare_own_sources(std::initializer_list<NNTrainingStyle> styles) {
  for (const TrainedParameters& trained : trained_) {
    const bool is_asked = !trained.is_updated_by_engine && std::find(styles.begin(), styles.end(), trained.style) != styles.end();
    TrainedDataSource* own = is_asked ? own_source(trained) : nullptr;
    if (!own || !own->training().optimizer()) continue;
    const auto prepare = [&](const auto& parameters, const ParameterRange& first, const ParameterRange& second) {
      own->training().prepare(values(first), second ? values(second) : Buffer(), parameters.label);
    };
    if (trained.convolution) prepare(*trained.convolution, trained.convolution->weights, trained.convolution->biases);
    else if (trained.normalization) prepare(*trained.normalization, trained.normalization->gamma, trained.normalization->beta);
    else prepare(*trained.affine, trained.affine->gamma, trained.affine->beta);
  }
}

void ParameterStore::update_application_source(const TrainedParameters& trained, const Shape& source_shape, const Buffer& gradients, Changed& changed) {
  if (trained.convolution) {
    if (trained.convolution->source->update(gradient_state(trained, source_shape, gradients), source_state(*trained.convolution)))
      changed.convolutions.push_back(trained.convolution);
  } else if (trained.normalization) {
    CNNBatchNormalizationDataSource& source = *trained.normalization->source;
    const auto state = normalization_state(trained, source_shape, gradients);
    const bool has_new_affine = source.update_gamma_and_beta(state), has_new_statistics = source.update_mean_and_variance(state);
    if (has_new_affine || has_new_statistics) changed.normalizations.push_back(trained.normalization);
  } else if (trained.affine->source->update_gamma_and_beta({affine_state(trained, gradients)})) {
    changed.affines.push_back(trained.affine);
  }
}

OwnUpdate ParameterStore::own_update(const TrainedParameters& trained, const Shape& source_shape, const Buffer& gradients) const {
  OwnUpdate update{.trained = &trained};
  if (trained.convolution) {
    update.gradient = gradient_state(trained, source_shape, gradients);
    update.source = source_state(*trained.convolution);
  } else if (trained.normalization) {
    update.normalization = normalization_state(trained, source_shape, gradients);
  } else {
    update.affine = {affine_state(trained, gradients)};
  }
  return update;
}

void ParameterStore::run(const OwnUpdate& update) {
  // They update the state in place, in the engine's own type: reading them again would only round to Float32.
  const TrainedParameters& trained = *update.trained;
  if (trained.convolution) {
    trained.convolution->source->update(update.gradient, update.source);
  } else if (trained.normalization) {
    auto& own = dynamic_cast<BatchNormalizationWeights&>(*trained.normalization->source);
    own.update_gamma_and_beta(update.normalization);
    if (!own.update_mean_and_variance(update.normalization)) return;
    values(trained.normalization->mean).copy_from(own.mean_buffer());
    values(trained.normalization->variance).copy_from(own.variance_buffer());
  } else {
    trained.affine->source->update_gamma_and_beta(update.affine);
  }
}

namespace {

/// Ours to the last override: a class derived from ours may do anything in its update.
bool is_ours(const TrainedParameters& trained) {
  if (trained.convolution) {
    const CNNConvolutionDataSource& source = *trained.convolution->source;
    return typeid(source) == typeid(ConvolutionWeights);
  }
  if (trained.normalization) {
    const CNNBatchNormalizationDataSource& source = *trained.normalization->source;
    return typeid(source) == typeid(BatchNormalizationWeights);
  }
  const CNNAffineDataSource& source = *trained.affine->source;
  return typeid(source) == typeid(InstanceNormalizationWeights) || typeid(source) == typeid(GroupNormalizationWeights);
}

}  // namespace

std::optional<std::vector<OwnUpdate>> ParameterStore::own_updates(const std::vector<Shape>& source_shapes) const {
  std::vector<OwnUpdate> updates;
  for (const NNTrainingStyle style : {NNTrainingStyle::UpdateDeviceGPU, NNTrainingStyle::UpdateDeviceCPU})
    for (std::size_t i = 0; i < trained_.size(); ++i) {
      if (trained_[i].style != style || trained_[i].is_updated_by_engine) continue;
      if (!is_ours(trained_[i])) return std::nullopt;
      updates.push_back(own_update(trained_[i], source_shapes[i], gradients_));
    }
  return updates;
}

void ParameterStore::run_own_updates(const std::vector<OwnUpdate>& updates) {
  for (const OwnUpdate& update : updates) run(update);
  if (!updates.empty()) ++version_;
}

}  // namespace mpsnn
