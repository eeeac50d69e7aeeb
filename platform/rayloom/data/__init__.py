"""Sources to rows, rows to prompts and token ids, token ids to batches."""

from rayloom.data.batching import GlobalBatch, MicroBatch, Plan, plan_epoch, plan_evaluation
from rayloom.data.collation import collate, collate_packed
from rayloom.data.columns import Columns, columns_for
from rayloom.data.dataset import IGNORED, Dataset, EncodedDataset, EncodingReport, Example
from rayloom.data.encoding import EncodedPrompt, Encoder
from rayloom.data.hub import load_dataset_rows
from rayloom.data.packing import Packing
from rayloom.data.rows import Row, SourceRow
from rayloom.data.sharded import ShardedDataset
from rayloom.data.shards import encode_corpus
from rayloom.data.sources import read_rows
from rayloom.data.splits import Splits, load_splits, rows_digest
from rayloom.data.streaming import StreamedRows, way_of
from rayloom.data.templates import Message, PromptInput, PromptTemplate
from rayloom.data.tokenization import tokenizer_fingerprint
from rayloom.data.tokenizing import encode_rows
from rayloom.data.work import Workers, this_process

__all__ = [
    "IGNORED",
    "Columns",
    "Dataset",
    "EncodedDataset",
    "EncodedPrompt",
    "Encoder",
    "EncodingReport",
    "Example",
    "GlobalBatch",
    "Message",
    "MicroBatch",
    "Packing",
    "Plan",
    "PromptInput",
    "PromptTemplate",
    "Row",
    "ShardedDataset",
    "SourceRow",
    "Splits",
    "StreamedRows",
    "Workers",
    "collate",
    "collate_packed",
    "columns_for",
    "encode_corpus",
    "encode_rows",
    "load_dataset_rows",
    "load_splits",
    "plan_epoch",
    "plan_evaluation",
    "read_rows",
    "rows_digest",
    "this_process",
    "tokenizer_fingerprint",
    "way_of",
]
