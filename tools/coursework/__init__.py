"""The instructors' side of the exercises: assignments out, submissions in, grades and feedback out."""
