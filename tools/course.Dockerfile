# A Linux with bubblewrap for grading, for machines that have neither. Build it from the repository's root:
#   git archive HEAD | docker build -t llama3-edu-course -f tools/course.Dockerfile -
FROM python:3.12-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/*
COPY . /book
WORKDIR /book
RUN make install
ENTRYPOINT ["/book/.venv/bin/python", "/book/tools/course.py"]
