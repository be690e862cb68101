"""MEET: state, step, update, scores, agreement of ranks, recording, checkpoint, history."""
