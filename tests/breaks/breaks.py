"""One-line breaks of the package, each with the test that must fail; see breaks_test.py."""

from typing import NamedTuple


class Break(NamedTuple):
  """A change of one line that a test must notice."""

  name: str
  file: str  # path from the root of the repository
  original: str  # part of a line that occurs exactly once in the file
  broken: str  # what replaces it
  test: str  # node of pytest below tests/, as narrow as possible


MODEL = [
  Break(
    'attention scores scaled by the number of heads',
    'electra_jax/model/attention.py',
    'query.shape[-1] ** -0.5',
    'query.shape[-2] ** -0.5',
    'model/golden_parity_test.py::test_losses_logits_probabilities_and_gradients_equal_the_original[tied]',
  ),
  Break(
    'packed documents attend to each other',
    'electra_jax/model/attention.py',
    'segment_ids[:, :, None] == segment_ids[:, None, :]',
    '(segment_ids[:, :, None] > 0) == (segment_ids[:, None, :] > 0)',
    'model/documents_do_not_meet_test.py::'
    'test_changing_one_document_does_not_change_the_outputs_of_others[electra]',
  ),
  Break(
    'local attention reaches one position less',
    'electra_jax/model/attention.py',
    'jnp.abs(ahead) <= reach',
    'jnp.abs(ahead) < reach',
    'model/hf_parity_test.py::test_hidden_states_logits_losses_and_every_gradient_agree[modern]',
  ),
  Break(
    'rotary positions turn the other way',
    'electra_jax/model/attention.py',
    '[first * cos - second * sin, second * cos + first * sin]',
    '[first * cos + second * sin, second * cos - first * sin]',
    'model/hf_parity_test.py::test_hidden_states_logits_losses_and_every_gradient_agree[modern]',
  ),
  Break(
    'positions do not restart in each packed document',
    'electra_jax/model/encoder.py',
    'positions=jnp.where(real, index - start_of, 0)',
    'positions=jnp.where(real, index, 0)',
    'model/documents_do_not_meet_test.py::test_types_and_positions_restart_in_each_document',
  ),
  Break(
    'LayerNorm with an epsilon of its own',
    'electra_jax/model/encoder.py',
    'epsilon=config.layer_norm_eps',
    'epsilon=1e-6',
    'model/golden_parity_test.py::test_losses_logits_probabilities_and_gradients_equal_the_original[tied]',
  ),
  Break(
    'GELU by its tanh approximation',
    'electra_jax/model/encoder.py',
    '(0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5)))',
    'jax.nn.gelu(y, approximate=True)',
    'model/golden_parity_test.py::test_losses_logits_probabilities_and_gradients_equal_the_original[tied]',
  ),
  Break(
    'disentangled embeddings let gradients through',
    'electra_jax/model/encoder.py',
    'table + jax.lax.stop_gradient(base[name])',
    'table + base[name]',
    'pretrain/objectives_test.py::test_the_disentangled_discriminator_has_no_gradient_to_the_generators_embeddings',
  ),
  Break(
    'a row that pads the vocabulary can be predicted',
    'electra_jax/model/electra.py',
    'jax.lax.iota(jnp.int32, c.padded_vocab_size) < c.vocab_size',
    'jax.lax.iota(jnp.int32, c.padded_vocab_size) <= c.vocab_size',
    'pretrain/sampling_test.py::test_padding_of_the_vocabulary_is_never_sampled',
  ),
  Break(
    'the left tower sees the token that it predicts',
    'electra_jax/model/electra.py',
    'jnp.where(continues[..., None], ltr[:, :-1], 0)',
    'jnp.where(continues[..., None], ltr[:, 1:], 0)',
    'pretrain/electric_test.py::'
    'test_a_token_is_predicted_from_exactly_the_other_tokens_of_its_document[electra]',
  ),
  Break(
    'all rows of a batch drop the same units',
    'electra_jax/model/dropout.py',
    'words[:, word].reshape(',
    'words[:1, word].reshape(',
    'model/heads_test.py::test_dropout_depends_only_on_the_key_of_the_row[classification]',
  ),
  Break(
    'heads that do not divide the width are accepted',
    'electra_jax/model/config.py',
    'self.hidden_size % self.num_heads == 0',
    'self.hidden_size >= self.num_heads',
    'config/config_test.py::test_the_model_refuses_impossible_sizes_itself',
  ),
  Break(
    'float32 products in the precision that a platform prefers',
    'electra_jax/model/products.py',
    'return PRECISIONS[name] if jnp.dtype(dtype) == jnp.float32 else None',
    'return None',
    'model/precision_test.py::test_every_product_of_a_float32_step_is_float32[fields0]',
  ),
  Break(
    'the factor of dropout is rounded to bfloat16',
    'electra_jax/model/dropout.py',
    "jnp.float32 if settings.scale == 'float32' else x.dtype",
    'x.dtype',
    'model/bfloat16_test.py::test_dropout_keeps_the_mean[0.1]',
  ),
  Break(
    'unrolled layers are recomputed without a barrier',
    'electra_jax/model/encoder.py',
    'prevent_cse=not c.recomputed_in_loop',
    'prevent_cse=False',
    'model/remat_test.py::test_unrolled_layers_are_kept_apart_from_what_is_recomputed',
  ),
  Break(
    'layers that are recomputed are unrolled on a CPU',
    'electra_jax/training/encoders.py',
    "if platform == 'cpu' and model.remat != 'none':",
    'if False:',
    'model/remat_test.py::test_full_holds_what_passes_between_layers_and_dots_the_products_too[6]',
  ),
]

PRETRAINING = [
  Break(
    'the discriminator learns from masked positions only',
    'electra_jax/pretrain/objectives/electra.py',
    'parts.judge(params, context, proposal, self.judged_tokens(context))',
    'parts.judge(params, context, proposal, parts.masked_positions(context.batch))',
    'pretrain/objectives_test.py::test_losses_equal_their_definition[electra]',
  ),
  Break(
    'a sample equal to the original is labeled replaced',
    'electra_jax/pretrain/replacement.py',
    '(corrupted != token_ids).astype(jnp.float32)',
    'write_tokens(0 * token_ids, masks.positions, samples * 0 + 1, masks.weights) + 0.0',
    'pretrain/sampling_test.py::'
    'test_only_masked_positions_change_and_a_sample_equal_to_the_original_is_labeled_original',
  ),
  Break(
    'the generator reads the tokens that it predicts',
    'electra_jax/pretrain/objectives/parts.py',
    'context.inputs_with(masks.token_ids),',
    'context.inputs,',
    'pretrain/objectives_test.py::test_losses_equal_their_definition[mlm]',
  ),
  Break(
    'micro-batches divide by their own number of masks',
    'electra_jax/pretrain/objectives/parts.py',
    "losses.sum() / context.counts['masked']",
    'losses.sum() / masks.weights.sum()',
    'training/micro_batches_test.py::test_one_and_four_micro_batches_train_alike',
  ),
  Break(
    '[SEP] can be masked',
    'electra_jax/pretrain/objectives/settings.py',
    'return [self.pad_id, self.cls_id, self.sep_id, self.mask_id]',
    'return [self.pad_id, self.cls_id, self.mask_id]',
    'pretrain/masking_test.py::test_special_tokens_and_padding_are_never_chosen_and_never_changed',
  ),
  Break(
    'the number of masks is rounded up',
    'electra_jax/pretrain/masking.py',
    'jnp.round(settings.mask_rate * counted.sum(1))',
    'jnp.ceil(settings.mask_rate * counted.sum(1))',
    'pretrain/masking_test.py::test_counts_are_exact',
  ),
  Break(
    '15% of the chosen positions are masked and 85% are kept',
    'electra_jax/pretrain/masking.py',
    'jax.random.uniform(what, (slots,)) < settings.mask_share',
    'jax.random.uniform(what, (slots,)) >= settings.mask_share',
    'pretrain/masking_test.py::test_85_percent_of_the_chosen_positions_are_masked',
  ),
  Break(
    'words are continued across special tokens',
    'electra_jax/pretrain/masking.py',
    'first = opens | maskable & begins',
    'first = maskable & begins',
    'pretrain/masking_words_test.py::test_masks_are_those_of_the_definition',
  ),
  Break(
    'Gumbel noise with the wrong sign',
    'electra_jax/model/randomness.py',
    'return -jnp.log(-jnp.log(',
    'return jnp.log(-jnp.log(',
    'model/randomness_test.py::test_gumbel_noise_equals_that_of_jax',
  ),
  Break(
    'temperature inverted',
    'electra_jax/pretrain/replacement.py',
    'logits + temperature * gumbel(keys, logits.shape[1:])',
    'logits + gumbel(keys, logits.shape[1:]) / temperature',
    'pretrain/sampling_test.py::test_sample_frequencies_follow_the_softmax_at_the_temperature[0.5]',
  ),
  Break(
    'masks are the same in each step',
    'electra_jax/pretrain/pretrain_step.py',
    'row_keys(self.seed, step, jnp.arange(token_ids.shape[0]))',
    'row_keys(self.seed, 0, jnp.arange(token_ids.shape[0]))',
    'model/randomness_test.py::test_the_keys_of_a_step_follow_from_seed_step_and_rows',
  ),
  Break(
    "Electric's noise takes a gradient of the discriminator's loss",
    'electra_jax/pretrain/objectives/electric.py',
    'return proposal, jax.lax.stop_gradient(log_q[..., 1])',
    'return proposal, log_q[..., 1]',
    'pretrain/electric_test.py::test_noise_has_no_gradient_of_the_discriminators_loss',
  ),
  Break(
    'ties do not count in the area under the curve',
    'electra_jax/pretrain/metrics.py',
    ' + 0.5 * positives * negatives',
    '',
    'pretrain/metrics_test.py::test_metrics_equal_scikit_learn[0.0-512]',
  ),
  Break(
    'a tie between minimal pairs counts as right',
    'electra_jax/pretrain/minimal_pairs.py',
    'np.where(good > bad, 1.0,',
    'np.where(good >= bad, 1.0,',
    'pretrain/minimal_pairs_test.py::test_equal_scores_count_one_half',
  ),
  Break(
    'a budget takes one step too many',
    'electra_jax/pretrain/budgets.py',
    'max(1, int((budget - spent) / costs[-1]))',
    'max(1, int((budget - spent) / costs[-1]) + 1)',
    'pretrain/budget_test.py::test_a_budget_of_tokens_is_met_within_one_step',
  ),
  Break(
    'a run of another config is trained over',
    'electra_jax/pretrain/run_start.py',
    'if changed and checkpoints.any_saved(folder):',
    'if changed and not checkpoints.any_saved(folder):',
    'cli/bad_input_test.py::test_the_workdir_of_another_config_is_refused',
  ),
  Break(
    'a checkpoint is saved before its step is checked',
    'electra_jax/pretrain/phase_loop.py',
    'self._check_finite(self.runner.bad_step())',
    'pass',
    'pretrain/nonfinite_test.py::'
    'test_the_command_stops_and_names_the_step_or_skips_such_steps_if_configured',
  ),
]

TRAINING = [
  Break(
    'weight decay on biases',
    'electra_jax/training/optimizers.py',
    "return names[-1] != 'bias' and not any(",
    'return not any(',
    'model/golden_parity_test.py::test_eight_steps_of_the_optimizer_equal_the_original',
  ),
  Break(
    'gradients are not clipped',
    'electra_jax/training/optimizers.py',
    'clip_by_tower_norms(clip) if settings.clips_by_tower else optax.clip_by_global_norm(clip)',
    'optax.identity()',
    'model/golden_parity_test.py::test_eight_steps_of_the_optimizer_equal_the_original',
  ),
  Break(
    'the warm-up is one step ahead',
    'electra_jax/training/schedules.py',
    '_share(step, self.warmup_steps,',
    '_share(step + 1, self.warmup_steps,',
    'model/golden_parity_test.py::test_eight_steps_of_the_optimizer_equal_the_original',
  ),
  Break(
    'bias correction where it is turned off',
    'electra_jax/training/optimizers.py',
    'if o.bias_correction:',
    'if not o.bias_correction:',
    'model/golden_parity_test.py::test_eight_steps_of_the_optimizer_equal_the_original',
  ),
  Break(
    "LAMB's trust ratio inverted",
    'electra_jax/training/optimizers.py',
    'of_param / jnp.where(moves, of_update, 1)',
    'of_update / jnp.where(moves, of_param, 1)',
    'training/optimizers_test.py::test_lamb_moves_a_layer_by_its_norm_times_the_rate',
  ),
  Break(
    'layer-wise rates are one layer off',
    'electra_jax/training/optimizers.py',
    'depths = np.arange(1, num_layers + 1)',
    'depths = np.arange(num_layers)',
    'training/layerwise_rates_test.py::'
    'test_every_parameter_has_the_rate_of_its_depth[True-electra]',
  ),
  Break(
    'frozen parameters are decayed',
    'electra_jax/training/update_step.py',
    'updates = _only_trained(trained, updates, jax.tree.map(jnp.zeros_like, updates))',
    'pass',
    'pretrain/continued_test.py::'
    'test_steps_of_only_the_generator_leave_all_else_bitwise_unchanged[-embeddings]',
  ),
  Break(
    'a gradient that is not finite updates the parameters',
    'electra_jax/training/update_step.py',
    " & jnp.isfinite(gradient_norms['all'])",
    '',
    'pretrain/nonfinite_test.py::test_a_nonfinite_gradient_stops_the_run_though_the_loss_is_finite',
  ),
  Break(
    'the schedule stands still while updates are skipped',
    'electra_jax/training/update_step.py',
    'bad < 0 if _is_schedule(new) else fine',
    'fine',
    'pretrain/nonfinite_test.py::test_the_schedule_follows_the_step_when_updates_are_skipped',
  ),
  Break(
    'a run may skip everything',
    'electra_jax/training/update_step.py',
    'return in_a_row | (too_many & (step >= WINDOW - 1))',
    'return in_a_row & too_many & False',
    'pretrain/nonfinite_test.py::test_the_state_stays_as_before_the_step_that_passes_the_limits',
  ),
  Break(
    'bias correction counts updates of other parameters',
    'electra_jax/training/optimizers.py',
    "isinstance(o, OptimizerConfig) and o.update_counts == 'separate'",
    'False',
    'training/optimizers_test.py::'
    'test_the_first_updates_of_a_discriminator_that_starts_late_are_as_large_as_any_first_updates',
  ),
  Break(
    'devices average their gradients instead of adding them',
    'electra_jax/training/partitioning.py',
    "return jax.lax.psum(gradient, 'data')",
    "return jax.lax.pmean(gradient, 'data')",
    'training/sharding_invariance_test.py::test_one_device_and_eight_train_equally',
  ),
  Break(
    'moments are split along an axis that fills no tiles',
    'electra_jax/training/partitioning.py',
    '(spec[i] is None, part % tile == 0, part // tile, -i)',
    '(spec[i] is None, part, -i)',
    'training/mesh_test.py::test_moments_are_split_once_over_data_along_the_axis_that_fills_tiles',
  ),
  Break(
    'the best checkpoint is the one of the highest loss',
    'electra_jax/training/checkpoints.py',
    "(1 if mode == 'max' else -1)",
    "(1 if mode == 'min' else -1)",
    'training/checkpoints_test.py::test_the_best_and_the_last_checkpoints_are_kept',
  ),
  Break(
    'a checkpoint loses the sums of its interval',
    'electra_jax/training/checkpoints.py',
    'sums=item(sums),',
    'sums=item(jax.tree.map(lambda x: 0 * x, sums)),',
    'training/checkpoints_test.py::test_background_saving_is_not_affected_by_donated_buffers',
  ),
  Break(
    'a file of a run is written in place',
    'electra_jax/file_access.py',
    "temporary = f'{path}.{uuid.uuid4().hex[:8]}.partial'",
    'temporary = path',
    'training/workdir_test.py::test_a_file_whose_writing_fails_is_unchanged',
  ),
  Break(
    'a resumed run loses the metrics of its checkpoint',
    'electra_jax/training/progress.py',
    "if line['step'] <= step]",
    "if line['step'] < step]",
    'training/workdir_test.py::test_a_resumed_run_keeps_metrics_up_to_its_checkpoint',
  ),
]

DATA = [
  Break(
    'each epoch has the same order',
    'electra_jax/data/store/permutation.py',
    'seed % 2**64)) + epochs)',
    'seed % 2**64)))',
    'data/data_batches_test.py::test_every_epoch_has_its_own_order',
  ),
  Break(
    'batches overlap',
    'electra_jax/data/store/row_batches.py',
    'in_pieces(step * batch_size + np.arange',
    'in_pieces(step * (batch_size - 1) + np.arange',
    'data/data_batches_test.py::test_every_row_occurs_once_per_epoch',
  ),
  Break(
    'stores of a mixture share one order',
    'electra_jax/data/store/mixture.py',
    'return seed if source == 0 else derived_seed(seed, source)',
    'return seed',
    'data/data_batches_test.py::test_stores_of_equal_size_have_different_orders',
  ),
  Break(
    'a cut leaves slivers of documents',
    'electra_jax/data/prepare/packing.py',
    'take = min(room, remaining - min_piece)',
    'take = min(room, remaining)',
    'data/data_packing_test.py::test_every_token_occurs_once_and_in_order',
  ),
  Break(
    'held-out documents are trained on',
    'electra_jax/data/prepare/blocks.py',
    'chosen[split].append(text)',
    "chosen['train'].append(text)",
    'data/data_prepare_test.py::test_every_token_of_every_document_is_in_the_rows_of_its_split',
  ),
  Break(
    'other documents are held out than before',
    'electra_jax/data/corpus/corpora.py',
    "int.from_bytes(digest, 'big')",
    "int.from_bytes(digest, 'little')",
    'data/data_corpora_test.py::test_only_its_text_decides_whether_a_document_is_held_out',
  ),
  Break(
    'unknown tokens are not counted',
    'electra_jax/data/prepare/blocks.py',
    '(encoded == tokenizer.unk_id).sum()',
    '(encoded == tokenizer.pad_id).sum()',
    'data/data_prepare_test.py::test_the_counts_are_right',
  ),
  Break(
    'checksums of shards are not compared',
    'electra_jax/data/store/token_manifest.py',
    "if digest != shard['blake2b']:",
    'if not digest:',
    'data/data_token_store_test.py::test_a_damaged_store_is_refused',
  ),
  Break(
    'a shard that changed is not checked again',
    'electra_jax/data/store/token_manifest.py',
    "known.get(shard['file']) != seen[shard['file']]",
    "shard['file'] not in known",
    'data/data_token_store_test.py::test_checked_shards_are_read_again_only_after_a_change',
  ),
  Break(
    'a fetched shard is not compared with its checksum',
    'electra_jax/data/store/shard_cache.py',
    "count == shard['bytes'] and digest.hexdigest() == shard['blake2b']",
    "count == shard['bytes']",
    'data/data_remote_store_test.py::test_a_shard_that_arrives_damaged_is_fetched_again_and_then_refused',
  ),
  Break(
    'a shard gets its name before it is on the disk',
    'electra_jax/data/store/token_shards.py',
    'os.fsync(file.fileno())',
    'pass',
    'data/data_token_store_test.py::test_a_shard_is_on_the_disk_before_it_gets_its_name',
  ),
  Break(
    'a file gets its name before it is on the disk',
    'electra_jax/file_access.py',
    'os.fsync(file.fileno())',
    'pass',
    'data/data_files_test.py::test_a_file_is_on_the_disk_before_it_gets_its_name',
  ),
  Break(
    'processes that prepare one corpus do not wait for each other',
    'electra_jax/data/prepare/finished.py',
    'fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)',
    'fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)',
    'data/data_prepare_test.py::test_a_second_process_waits_for_the_first',
  ),
  Break(
    'cased text is lower-cased',
    'electra_jax/data/tokenizers/wordpiece_tokenizer.py',
    "lowercase=settings['do_lower_case']",
    'lowercase=True',
    'data/wordpiece_parity_test.py::test_hostile_text_gives_the_same_ids[cased-trained here]',
  ),
]

FINETUNING = [
  Break(
    'the rows of a small set meet the same rows in each epoch',
    'electra_jax/finetune/batches.py',
    'keys = keys * np.exp(self._jitter * (2 * places / count - 1))',
    'keys = keys + 0 * places',
    'finetune/finetune_batches_test.py::test_the_rows_of_a_small_set_meet_other_rows_in_each_epoch',
  ),
  Break(
    'a trial collapses by its metrics, whatever its answers are',
    'electra_jax/finetune/trial_summary.py',
    "collapsed = all_the_same(record.get('answers', {}))",
    'collapsed = None',
    'finetune/trials_summary_test.py::test_the_answers_decide_whatever_the_metrics_are',
  ),
  Break(
    'articles are removed before punctuation',
    'electra_jax/finetune/tasks/squad_metrics.py',
    "_ARTICLES.sub(' ', text.lower().translate(_NO_PUNCTUATION))",
    "_ARTICLES.sub(' ', text.lower()).translate(_NO_PUNCTUATION)",
    'finetune/squad_metrics_test.py::test_normalized',
  ),
  Break(
    'null odds are the highest of all windows',
    'electra_jax/finetune/tasks/squad.py',
    'np.minimum.reduceat',
    'np.maximum.reduceat',
    'finetune/squad_task_test.py::test_null_odds_are_the_lowest_of_all_windows',
  ),
  Break(
    'a window has an answer that it contains only in part',
    'electra_jax/finetune/tasks/squad.py',
    'start <= first and last < start + room',
    'start <= first and first < start + room',
    'finetune/squad_windows_test.py::test_a_window_without_the_whole_answer_is_impossible',
  ),
  Break(
    "a word's tag is at the token before it",
    'electra_jax/finetune/tasks/tagging.py',
    'np.cumsum([1, *map(len, pieces)])',
    'np.cumsum([0, *map(len, pieces)])',
    'finetune/tagging_task_test.py::test_the_target_of_a_word_is_at_its_first_token',
  ),
  Break(
    'a B- tag continues the entity before it',
    'electra_jax/finetune/entities.py',
    "mark in 'OBS' or own != kind",
    "mark in 'OS' or own != kind",
    'finetune/entities_test.py::test_metrics_equal_those_of_seqeval',
  ),
  Break(
    "Matthews' correlation without its expected agreement",
    'electra_jax/finetune/task_metrics.py',
    'np.trace(counts) * n - golds @ predictions',
    'np.trace(counts) * n - golds @ golds',
    'finetune/task_metrics_test.py::test_random_labels',
  ),
  Break(
    'tied values get the last of their ranks',
    'electra_jax/finetune/task_metrics.py',
    '(np.cumsum(counts) - (counts - 1) / 2)[places]',
    'np.cumsum(counts)[places]',
    'finetune/task_metrics_test.py::test_correlations',
  ),
  Break(
    'the first label has no loss in tagging',
    'electra_jax/finetune/losses.py',
    "weights[:, None] * (batch['tags'] >= 0)",
    "weights[:, None] * (batch['tags'] > 0)",
    'model/heads_test.py::test_losses_agree_with_numpy',
  ),
  Break(
    'a padding row of a batch has a weight',
    'electra_jax/finetune/batches.py',
    'np.arange(batch_size) < len(rows)',
    'np.arange(batch_size) <= len(rows)',
    'finetune/finetune_batches_test.py::test_a_short_batch_is_padded_with_rows_of_weight_0',
  ),
  Break(
    'the labels of MNLI in another order',
    'electra_jax/finetune/tasks/glue.py',
    "('contradiction', 'entailment', 'neutral')",
    "('entailment', 'contradiction', 'neutral')",
    'finetune/glue_test.py::test_labels_metrics_and_recipe[mnli]',
  ),
  Break(
    'intervals of the mean of n - 1 trials',
    'electra_jax/finetune/trial_summary.py',
    '* deviation / math.sqrt(n)',
    '* deviation / math.sqrt(n - 1)',
    'finetune/trials_summary_test.py::test_statistics_equal_those_of_scipy',
  ),
  Break(
    'a sweep reports the best of the trials',
    'electra_jax/sweep/summary.py',
    "100 * statistics.median(task['values'])",
    "100 * max(task['values'])",
    'sweep/sweep_test.py::test_metrics_of_tasks_are_medians_of_trials_times_100',
  ),
]

INTEROP = [
  Break(
    'kernels are exported without transposing them',
    'electra_jax/interop/hf_tensors.py',
    'values = [value.T for value in values]',
    'values = [value.reshape(value.T.shape) for value in values]',
    'interop/hf_export_test.py::'
    'test_tensors_survive_reading_and_writing_with_name_and_bits[encoder-electra]',
  ),
  Break(
    "ModernBERT's gate and input swapped",
    'electra_jax/interop/hf_modernbert.py',
    "(part('mlp_in/kernel'), part('mlp_gate/kernel'))",
    "(part('mlp_gate/kernel'), part('mlp_in/kernel'))",
    'interop/hf_import_test.py::'
    'test_logits_loss_and_gradients_equal_pytorch_in_both_directions[every second global]',
  ),
  Break(
    "Adam's two moments swapped in TensorFlow checkpoints",
    'electra_jax/interop/google_variables.py',
    "{'mu': 'adam_m', 'nu': 'adam_v'}",
    "{'mu': 'adam_v', 'nu': 'adam_m'}",
    'interop/google_checkpoint_test.py::test_moments_and_step_are_read',
  ),
  Break(
    'a generator cut out of a discriminator is scaled down',
    'electra_jax/interop/narrowed.py',
    'math.sqrt(value.shape[1] / len(inputs))',
    'math.sqrt(len(inputs) / value.shape[1])',
    'pretrain/continued_test.py::'
    'test_a_narrowed_generator_has_units_heads_and_layers_at_even_distances[electra-32]',
  ),
  Break(
    'a pickle may import what it asks for',
    'electra_jax/interop/torch_files.py',
    'if (module, name) not in self._GLOBALS:',
    'if (module, name) not in self._GLOBALS and not super().find_class(module, name):',
    'interop/tensor_files_test.py::test_message_names_the_refused_global',
  ),
]

PARTS = {
  'model': MODEL,
  'pretraining': PRETRAINING,
  'training': TRAINING,
  'data': DATA,
  'fine-tuning': FINETUNING,
  'interop': INTEROP,
}
BREAKS = [change for part in PARTS.values() for change in part]
