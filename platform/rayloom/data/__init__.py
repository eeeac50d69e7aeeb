"""Sources to rows, rows to prompts and token ids, token ids to batches."""

from rayloom.data.batching import GlobalBatch, MicroBatch, plan_epoch, plan_evaluation
from rayloom.data.collation import collate, collate_packed
from rayloom.data.columns import Columns, columns_for
from rayloom.data.dataset import IGNORED, EncodedDataset, EncodingReport, Example
from rayloom.data.encoding import EncodedPrompt, Encoder
from rayloom.data.hub import load_dataset_rows
from rayloom.data.packing import Packing
from rayloom.data.rows import Row, SourceRow
from rayloom.data.sources import read_rows
from rayloom.data.splits import Splits, load_splits, rows_digest
from rayloom.data.templates import Message, PromptInput, PromptTemplate
from rayloom.data.tokenization import tokenizer_fingerprint
from rayloom.data.tokenizing import encode_rows

__all__ = [
    "IGNORED",
    "Columns",
    "EncodedDataset",
    "EncodedPrompt",
    "Encoder",
    "EncodingReport",
    "Example",
    "GlobalBatch",
    "Message",
    "MicroBatch",
    "Packing",
    "PromptInput",
    "PromptTemplate",
    "Row",
    "SourceRow",
    "Splits",
    "collate",
    "collate_packed",
    "columns_for",
    "encode_rows",
    "load_dataset_rows",
    "load_splits",
    "plan_epoch",
    "plan_evaluation",
    "read_rows",
    "rows_digest",
    "tokenizer_fingerprint",
]
