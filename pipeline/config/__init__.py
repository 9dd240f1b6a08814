"""The settings of a run: one YAML file, defaults in code; ``configs/README.md`` lists them all."""

from pipeline.config.execution import Execution as Execution
from pipeline.config.execution import Prices as Prices
from pipeline.config.execution import Retention as Retention
from pipeline.config.execution import Storage as Storage
from pipeline.config.fit import Augment as Augment
from pipeline.config.fit import AutoClusters as AutoClusters
from pipeline.config.fit import Model as Model
from pipeline.config.fit import Optimization as Optimization
from pipeline.config.fit import Pretrain as Pretrain
from pipeline.config.fit import Refine as Refine
from pipeline.config.loading import load_config as load_config
from pipeline.config.nights import Matching as Matching
from pipeline.config.publication import Explain as Explain
from pipeline.config.publication import Lake as Lake
from pipeline.config.sections import Affects as Affects
from pipeline.config.settings import MIN_SAMPLE_ROWS_PER_CLUSTER as MIN_SAMPLE_ROWS_PER_CLUSTER
from pipeline.config.settings import Config as Config
from pipeline.config.settings import content_of as content_of
from pipeline.config.sizing import sized as sized
from pipeline.config.source import Feature as Feature
