"""The modes that tracekit brings."""
