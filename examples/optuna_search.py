"""Searches for a learning rate and a sampling temperature with Optuna.

  pip install optuna
  python examples/optuna_search.py --base=tiny:steps=800,warmup=80 --trials=8

Each trial is a run in --folder, whose discriminator is evaluated on held-out rows. The study is
stored in the folder: the same command adds trials, also after an interruption.
"""

import argparse
import pathlib

import optuna

import electra_jax
from electra_jax.config.config_files import load_config_file
from electra_jax.errors import PREEMPTED, UserError
from electra_jax.pretrain import evaluation
from electra_jax.pretrain.train import train


def average_precision(trial: optuna.Trial, base: str, folder: pathlib.Path) -> float:
  """Trains and evaluates a run with the values of a trial.

  Args:
    trial: of the study.
    base: the config that all trials start from.
    folder: of the study.

  Returns:
    The discriminator's average precision on rows that are corrupted without a generator, so that
    trials with different generators are compared on the same task.
  """
  c = load_config_file(base)
  c.optimizer.learning_rate = trial.suggest_float('learning_rate', 3e-4, 1e-2, log=True)
  c.objective.temperature = trial.suggest_float('temperature', 0.5, 2.0)
  c.name, c.keep = f'trial-{trial.number}', 1
  workdir = folder / f'trial-{trial.number}'
  if train(c, workdir) == PREEMPTED:
    trial.study.stop()
    raise optuna.TrialPruned('the program was asked to stop')
  result = evaluation.evaluate(electra_jax.load(workdir))
  return result['figures']['reference_ap']['value']


def search(base: str, folder: pathlib.Path, trials: int) -> optuna.Study:
  """Adds trials to the study of a folder, which is created if there is none."""
  folder.mkdir(parents=True, exist_ok=True)
  study = optuna.create_study(
    study_name='search',
    storage=f'sqlite:///{folder}/study.db',
    load_if_exists=True,
    direction='maximize',
    sampler=optuna.samplers.TPESampler(seed=0),
  )
  # A loss that is not finite fails its trial only.
  study.optimize(
    lambda trial: average_precision(trial, base, folder), n_trials=trials, catch=(UserError,)
  )
  return study


def main() -> None:
  """Runs the search of the command line, and prints the best trial."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--base', default='tiny:steps=800,warmup=80')
  parser.add_argument('--folder', type=pathlib.Path, default=pathlib.Path('runs/search'))
  parser.add_argument('--trials', type=int, default=8)
  values = parser.parse_args()
  study = search(values.base, values.folder, values.trials)
  print(f'best of {len(study.trials)}: trial {study.best_trial.number}, {study.best_value:.4f}')
  for name, value in study.best_params.items():
    print(f'  {name}: {value:.4g}')


if __name__ == '__main__':
  main()
