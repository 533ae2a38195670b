"""Answers, line by line, how PyPI's aws-kinesis-agg writes and reads aggregates: records are [partition key, base64]."""

import base64
import json
import sys

from aws_kinesis_agg.aggregator import RecordAggregator
from aws_kinesis_agg.deaggregator import deaggregate_records


def text(data):
    return base64.b64encode(data).decode()


def encode(records):
    aggregator = RecordAggregator()
    for key, data in records:
        if aggregator.add_user_record(key, base64.b64decode(data)) is not None:
            raise ValueError("more than one aggregate")
    key, _, data = aggregator.clear_and_get().get_contents()
    return [key, text(data)]


def decode(data):
    record = {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "sequenceNumber": "1",
            "approximateArrivalTimestamp": 0,
            "partitionKey": "outer",
            "data": data,
        }
    }
    found = [each["kinesis"] for each in deaggregate_records([record])]
    return [[each["partitionKey"], each["data"].decode()] for each in found]


for line in sys.stdin:
    request = json.loads(line)
    answer = encode(request["encode"]) if "encode" in request else decode(request["decode"])
    print(json.dumps(answer), flush=True)
