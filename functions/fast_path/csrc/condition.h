/* Condition: what threading.Condition is in Python, with a mutex that C takes without the interpreter lock.
 *
 * Whoever waits for the mutex or for a notification in Python releases the interpreter lock meanwhile, so
 * nobody who has that lock waits for a mutex. Calls in C do not need it while they hold a mutex. So neither
 * waits for the other for ever. */

#ifndef FAASMOE_CONDITION_H
#define FAASMOE_CONDITION_H

#include <Python.h>

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <time.h>

#define LONGEST_SECONDS 1e9

typedef struct {
    PyObject_HEAD pthread_mutex_t mutex;
    pthread_cond_t changed;
} Condition;

static PyObject *condition_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Condition", names)) return NULL;
    Condition *self = (Condition *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&self->mutex, NULL);
    pthread_cond_init(&self->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return (PyObject *)self;
}

static void condition_dealloc(PyObject *object) {
    Condition *self = (Condition *)object;
    PyTypeObject *type = Py_TYPE(object);
    pthread_cond_destroy(&self->changed);
    pthread_mutex_destroy(&self->mutex);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *condition_enter(PyObject *object, PyObject *unused) {
    (void)unused;
    Condition *self = (Condition *)object;
    if (pthread_mutex_trylock(&self->mutex)) {
        Py_BEGIN_ALLOW_THREADS
        pthread_mutex_lock(&self->mutex);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_TRUE;
}

static PyObject *condition_exit(PyObject *object, PyObject *unused) {
    (void)unused;
    pthread_mutex_unlock(&((Condition *)object)->mutex);
    Py_RETURN_NONE;
}

static PyObject *condition_notify_all(PyObject *object, PyObject *unused) {
    (void)unused;
    pthread_cond_broadcast(&((Condition *)object)->changed);
    Py_RETURN_NONE;
}

/* CLOCK_MONOTONIC in `seconds`, which are at most LONGEST_SECONDS. */
static struct timespec time_after(double seconds) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double whole = floor(seconds);
    end.tv_sec += (time_t)whole;
    end.tv_nsec += (long)((seconds - whole) * 1e9);
    if (end.tv_nsec >= 1000000000) {
        end.tv_nsec -= 1000000000;
        end.tv_sec++;
    }
    return end;
}

/* 1 when notified, perhaps for nothing; 0 when the time is over. */
static int condition_wait_until(Condition *self, const struct timespec *end) {
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = pthread_cond_timedwait(&self->changed, &self->mutex, end);
    Py_END_ALLOW_THREADS
    return result != ETIMEDOUT;
}

/* Sets *seconds. None is as good as for ever. */
static int parse_seconds(PyObject *object, double *seconds) {
    *seconds = object == Py_None ? LONGEST_SECONDS : PyFloat_AsDouble(object);
    if (*seconds == -1 && PyErr_Occurred()) return -1;
    if (!(*seconds > 0)) *seconds = 0;
    if (*seconds > LONGEST_SECONDS) *seconds = LONGEST_SECONDS;
    return 0;
}

static PyObject *condition_wait(PyObject *object, PyObject *args) {
    PyObject *timeout = Py_None;
    double seconds;
    if (!PyArg_ParseTuple(args, "|O:wait", &timeout) || parse_seconds(timeout, &seconds)) return NULL;
    const struct timespec end = time_after(seconds);
    return PyBool_FromLong(condition_wait_until((Condition *)object, &end));
}

static PyObject *condition_wait_for(PyObject *object, PyObject *args) {
    PyObject *predicate, *timeout = Py_None;
    double seconds;
    if (!PyArg_ParseTuple(args, "O|O:wait_for", &predicate, &timeout) || parse_seconds(timeout, &seconds))
        return NULL;
    const struct timespec end = time_after(seconds);
    for (int in_time = 1;; in_time = condition_wait_until((Condition *)object, &end)) {
        PyObject *result = PyObject_CallNoArgs(predicate);
        const int holds = result ? PyObject_IsTrue(result) : -1;
        if (holds != 0 || !in_time) {
            if (holds >= 0) return result;
            Py_XDECREF(result);
            return NULL;
        }
        Py_DECREF(result);
    }
}

static PyMethodDef condition_methods[] = {
    {"__enter__", condition_enter, METH_NOARGS, "Take the mutex."},
    {"__exit__", condition_exit, METH_VARARGS, "Release the mutex."},
    {"notify_all", condition_notify_all, METH_NOARGS, "Wake all that wait."},
    {"wait", condition_wait, METH_VARARGS, "wait(timeout=None): release the mutex until notified."},
    {"wait_for", condition_wait_for, METH_VARARGS,
     "wait_for(predicate, timeout=None): wait until the predicate holds; returns its last value."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot condition_slots[] = {
    {Py_tp_doc, "A threading.Condition whose mutex C can take, too. Not recursive."},
    {Py_tp_new, condition_new},
    {Py_tp_dealloc, condition_dealloc},
    {Py_tp_methods, condition_methods},
    {0, NULL},
};

static PyType_Spec condition_spec = {.name = "functions.fast_path._fast_path.Condition",
                                     .basicsize = sizeof(Condition),
                                     .flags = Py_TPFLAGS_DEFAULT,
                                     .slots = condition_slots};

#endif
